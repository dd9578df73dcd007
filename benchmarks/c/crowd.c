/* Many connections at once: a server for them, clients that hold them idle, and clients that keep them busy.
 *
 *     crowd serve PORT           on 127.0.0.1: sends back what it gets; a client that sends `d5` first gets zeros without
 *                                end as soon as five such clients are there
 *     crowd hold PORT COUNT      opens so many connections, each of which asks once and is answered once, and holds them
 *     crowd drain PORT COUNT     opens so many connections to a server as above, and reads what it sends
 *
 * The clients print `ready` when all connections are there, and end when standard input does. `drain` reads for a second
 * before that, and prints {"bytes": …, "seconds": …} of the time since. They come from 127.0.0.2 on, 20,000 from each.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 18, EVENTS = 64, FROM_ONE = 20000, PATIENCE = 30 };

static const double WARM = 1.0;     /* seconds */
static const char question[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
static char zeros[PIECE];
static int echoing, pouring, waiting;
static int *all;         /* that wait for zeros */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static struct sockaddr_in loopback(int host, int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK - 1 + host)}};
}

static void watch(int poller, int fd, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        err(1, "epoll_ctl");
}

/* Of its own thread, so that busy connections do not hold up the others here. */
static void *pour(void *none) {
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_wait(pouring, events, EVENTS, -1);
        for (int place = 0; place < ready; place++)
            if (send(events[place].data.fd, zeros, PIECE, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
                close(events[place].data.fd);
    }
    return none;
}

static void answer(int fd) {
    char bytes[4096];
    ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (got > 0 && bytes[0] == 'd') {
        bytes[got < 20 ? got : 20] = 0;
        int wanted = atoi(bytes + 1);
        epoll_ctl(echoing, EPOLL_CTL_DEL, fd, NULL);
        if (!(all = realloc(all, ++waiting * sizeof *all)))
            err(1, "realloc");
        all[waiting - 1] = fd;
        if (waiting < wanted)
            return;
        while (waiting)
            watch(pouring, all[--waiting], EPOLLOUT);
    } else if (got >= 0 || errno != EAGAIN) {
        if (got <= 0 || send(fd, bytes, got, MSG_NOSIGNAL) != got)
            close(fd);
    }
}

static void serve(int port) {
    struct sockaddr_in here = loopback(1, port);
    struct epoll_event events[EVENTS];
    pthread_t thread;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    echoing = epoll_create1(0);
    pouring = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096))
        err(1, "port %d", port);
    watch(echoing, listener, EPOLLIN);
    if (pthread_create(&thread, NULL, pour, NULL))
        errx(1, "no thread");
    for (;;) {
        int ready = epoll_wait(echoing, events, EVENTS, -1);
        for (int place = 0; place < ready; place++) {
            if (events[place].data.fd != listener) {
                answer(events[place].data.fd);
                continue;
            }
            int client = accept(listener, NULL, NULL);
            if (client < 0)
                err(1, "accept");
            setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
            watch(echoing, client, EPOLLIN);
        }
    }
}

static int client_of(int port, int number) {
    struct sockaddr_in here = loopback(2 + number / FROM_ONE, 0), there = loopback(1, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){PATIENCE, 0}, sizeof(struct timeval));
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) || connect(fd, (struct sockaddr *)&there, sizeof there))
        err(1, "connection %d", number + 1);
    return fd;
}

static void hold(int port, int count) {
    char bytes[4096], end;
    for (int number = 0; number < count; number++) {
        int fd = client_of(port, number);
        if (send(fd, question, sizeof question - 1, MSG_NOSIGNAL) < 0 || recv(fd, bytes, sizeof bytes, 0) <= 0)
            err(1, "connection %d has no answer", number + 1);
    }
    puts("ready");
    fflush(stdout);
    while (read(0, &end, 1) > 0)
        ;
}

static void drain(int port, int count) {
    struct epoll_event events[EVENTS];
    static char bytes[PIECE];
    long long moved = 0;
    double begin = 0, warm;
    int poller = epoll_create1(0), size = snprintf(bytes, sizeof bytes, "d%d", count);
    for (int number = 0; number < count; number++) {
        int fd = client_of(port, number);
        if (send(fd, bytes, size, MSG_NOSIGNAL) != size)
            err(1, "connection %d", number + 1);
        watch(poller, fd, EPOLLIN);
    }
    watch(poller, 0, EPOLLIN);
    epoll_wait(poller, events, 1, -1);      /* all are there */
    warm = now() + WARM;
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        if (!begin && now() > warm) {
            puts("ready");
            fflush(stdout);
            begin = now();
            moved = 0;
        }
        for (int place = 0; place < ready; place++) {
            if (!events[place].data.fd) {
                printf("{\"bytes\": %lld, \"seconds\": %.6f}\n", moved, now() - begin);
                return;
            }
            ssize_t got = recv(events[place].data.fd, bytes, PIECE, MSG_DONTWAIT);
            if (!got || (got < 0 && errno != EAGAIN))
                errx(1, "a connection has ended: %s", got ? strerror(errno) : "end of file");
            moved += got > 0 ? got : 0;
        }
    }
}

int main(int count, char **words) {
    signal(SIGPIPE, SIG_IGN);
    if (count == 3 && !strcmp(words[1], "serve"))
        serve(atoi(words[2]));
    else if (count == 4 && !strcmp(words[1], "hold"))
        hold(atoi(words[2]), atoi(words[3]));
    else if (count == 4 && !strcmp(words[1], "drain"))
        drain(atoi(words[2]), atoi(words[3]));
    else
        errx(2, "usage: crowd serve PORT | crowd hold PORT COUNT | crowd drain PORT COUNT");
}
