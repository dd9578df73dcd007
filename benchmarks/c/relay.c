/* The practical limit: a single-threaded TCP relay on epoll and splice(2), and nothing else.
 * No limits, no names, no records: what the kernel's part costs, for the others to be compared with.
 * Level-triggered, one fill for each event: measured a tenth cheaper in bulk than edge-triggered until it would block.
 *
 *     relay LISTEN_PORT TARGET_PORT [BYTES_PER_SECOND]
 *
 * Both ports are on 127.0.0.1. With a rate, the kernel paces each socket (SO_MAX_PACING_RATE).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIPE = 1 << 20, POOL = 1024, EVENTS = 512 };

struct pipe { int out, in; };

struct end {            /* one socket of a connection, and what was read from it and not yet written to the other */
    int fd, eof, dead;
    unsigned wanted;    /* the events that epoll knows of */
    size_t held;
    struct pipe *pipe;  /* from the pool, and only while there are bytes in it */
    struct end *other;
};

static struct pipe *pool[POOL];
static int pooled, poller;
static unsigned long rate;  /* of each socket; 0 for none */
static struct sockaddr_in target;

static struct pipe *take(void) {
    if (pooled)
        return pool[--pooled];
    struct pipe *made = malloc(sizeof *made);
    if (!made || pipe2((int *)made, O_NONBLOCK)) {
        free(made);
        return NULL;
    }
    fcntl(made->in, F_SETPIPE_SZ, PIPE);    /* refused to users over their quota: the default size works too */
    return made;
}

static void drop(struct pipe *used) {
    close(used->out);
    close(used->in);
    free(used);
}

static void give(struct end *from) {
    if (pooled < POOL)
        pool[pooled++] = from->pipe;
    else
        drop(from->pipe);
    from->pipe = NULL;
}

/* Fills the pipe if it is empty, and writes what it holds. Returns -1 if the connection broke. */
static int pump(struct end *from) {
    if (!from->held && !from->eof) {
        if (!(from->pipe = take()))
            return -1;
        ssize_t got = splice(from->fd, NULL, from->pipe->in, NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (got <= 0) {
            give(from);
            from->eof = !got;
            return got ? -(errno != EAGAIN) : shutdown(from->other->fd, SHUT_WR);
        }
        from->held = got;
    }
    while (from->held) {
        int out = from->other->fd;
        ssize_t put = splice(from->pipe->out, NULL, out, NULL, from->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (put < 0)
            return -(errno != EAGAIN);
        from->held -= put;
        if (!from->held)
            give(from);
    }
    return 0;
}

/* Waits to read where there is nothing held, to write where there is. */
static void want(struct end *one) {
    unsigned events = (one->held || one->eof ? 0 : EPOLLIN) | (one->other->held ? EPOLLOUT : 0);
    if (events != one->wanted) {
        struct epoll_event event = {one->wanted = events, {one}};
        epoll_ctl(poller, EPOLL_CTL_MOD, one->fd, &event);
    }
}

static struct end *add(int fd) {
    struct end *made = calloc(1, sizeof *made);
    if (!made)
        err(1, "calloc");
    made->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (rate)
        setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate);
    return made;
}

static void watch(struct end *one) {
    struct epoll_event event = {one->wanted = EPOLLIN, {one}};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &event))
        err(1, "epoll_ctl");
}

static void accept_all(int listener) {
    int client, server;
    while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if ((server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0) {
            close(client);
            continue;
        }
        struct end *left = add(client), *right = add(server);
        left->other = right;
        right->other = left;
        connect(server, (struct sockaddr *)&target, sizeof target);   /* a failure shows as an event */
        watch(left);
        watch(right);
    }
}

static void end(struct end *one) {
    if (one->pipe)
        drop(one->pipe);    /* with bytes of this connection in it */
    close(one->fd);
    one->dead = 1;
}

static struct sockaddr_in loopback(const char *port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

int main(int count, char **words) {
    if (count != 3 && count != 4)
        errx(2, "usage: relay LISTEN_PORT TARGET_PORT [BYTES_PER_SECOND]");
    rate = count == 4 ? strtoul(words[3], NULL, 10) : 0;
    struct sockaddr_in here = loopback(words[1]);
    target = loopback(words[2]);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096))
        err(1, "port %s", words[1]);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    struct epoll_event events[EVENTS], event = {EPOLLIN, {NULL}};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        struct end *ended[EVENTS];      /* freed after the batch, which may name them again */
        int ends = 0, ready = epoll_wait(poller, events, EVENTS, -1);
        for (int place = 0; place < ready; place++) {
            struct end *one = events[place].data.ptr;
            if (!one) {
                accept_all(listener);
                continue;
            }
            if (one->dead)
                continue;
            struct end *other = one->other;
            int broke = events[place].events & ~EPOLLOUT && pump(one);
            broke |= other->held && pump(other);
            if (broke || (one->eof && other->eof)) {
                end(one);
                end(other);
                ended[ends++] = one;
            } else {
                want(one);
                want(other);
            }
        }
        while (ends) {
            free(ended[--ends]->other);
            free(ended[ends]);
        }
    }
}
