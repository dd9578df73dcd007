/* A client of SOCKS5 (RFC 1928), without a login, and the server that it wants to be led to, at 127.0.0.1.
 *
 *     socks serve PORT                            serves any number of connections: see below
 *     socks bulk PROXY TARGET SECONDS             one connection that sends for so long
 *     socks connections PROXY TARGET SECONDS N    N at a time, each for one question of 64 bytes and its answer
 *     socks crowded PROXY TARGET SECONDS N CROWD  the same beside CROWD connections that say one byte and wait
 *
 * The server counts what it gets. After a piece that ends with a byte that is not 0 it answers with the count, 8 bytes
 * in the host's order, and ends the connection: not every proxy keeps half-close.
 * Of a crowd, 1,000 a second are replaced, the oldest first. A client that is not served in time then counts as nothing.
 * The latter three print {"bytes": …, "seconds": …} and {"count": …, "seconds": …, "p50": µs, "p99": µs}. PROXY 0 is none.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, PIECE = 1 << 18, MOST = 1024, PER_SECOND = 60000, CROWD = 8192, AT_ONCE = 32, TICK = 1000 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

/* -- the server: one thread for all, a buffer for each by its number ------------------------------------------------ */

static void serve(int port) {
    static uint64_t counts[1 << 16];
    static char bytes[PIECE];
    struct sockaddr_in here = loopback(port);
    struct epoll_event events[64], event = {.events = EPOLLIN};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poller = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096))
        err(1, "port %d", port);
    event.data.fd = listener;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int found = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < found; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0 || fd >= 1 << 16)
                    continue;
                counts[fd] = 0;
                event.data.fd = fd;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            ssize_t got = recv(fd, bytes, PIECE, 0);
            if (got > 0) {
                counts[fd] += got;
                if (!bytes[got - 1])
                    continue;
                send(fd, &counts[fd], sizeof counts[fd], MSG_NOSIGNAL);
            } else if (got < 0 && errno == EAGAIN)
                continue;
            close(fd);
        }
    }
}

/* -- clients: each step is taken when the answer to the one before it is there -------------------------------------- */

static const char HELLO[] = {5, 1, 0};

struct client {
    int fd, step, left;
    double start;
};

static struct sockaddr_in proxy, target;
static int direct, crowd;
static char zeros[PIECE], question[SIZE] = {[SIZE - 1] = 1};

static void request(char *bytes) {
    memcpy(bytes, (char[]){5, 1, 0, 1}, 4);
    memcpy(bytes + 4, &target.sin_addr, 4);
    memcpy(bytes + 8, &target.sin_port, 2);
}

static void say(int fd, const void *bytes, size_t size) {
    if (send(fd, bytes, size, MSG_NOSIGNAL) != (ssize_t)size)
        err(1, "send");
}

static void hear(int fd, void *bytes, size_t size) {
    if (recv(fd, bytes, size, MSG_WAITALL) != (ssize_t)size)
        err(1, "recv");
}

static int opened(int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(fd, (struct sockaddr *)(direct ? &target : &proxy), sizeof proxy) && errno != EINPROGRESS)
        err(1, "connect");
    return fd;
}

static void bulk(double seconds) {
    char bytes[16];
    uint64_t count;
    int fd = opened(0);
    if (!direct) {
        say(fd, HELLO, 3);
        hear(fd, bytes, 2);
        request(bytes);
        say(fd, bytes, 10);
        hear(fd, bytes, 10);
        if (bytes[1])
            errx(1, "refused: %d", bytes[1]);
    }
    double start = now();
    while (now() < start + seconds)
        say(fd, zeros, PIECE);
    say(fd, question, SIZE);
    hear(fd, &count, sizeof count);
    printf("{\"bytes\": %lu, \"seconds\": %f}\n", (unsigned long)count, now() - start);
}

static int poller;

static void begin(struct client *it) {
    it->start = now();
    it->step = direct ? 3 : 0;
    it->fd = opened(SOCK_NONBLOCK);
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = it};
    epoll_ctl(poller, EPOLL_CTL_ADD, it->fd, &event);
}

/* It gets nothing, which is allowed beside a crowd alone. */
static int lost(struct client *it, const char *why) {
    if (!crowd)
        err(1, "%s in step %d", why, it->step);
    close(it->fd);
    return -1;
}

/* Returns 1 when it is over, -1 if it was lost. */
static int go_on(struct client *it) {
    char bytes[16];
    ssize_t got = 0;
    if (it->step == 0 || it->step == 3) {     /* it is connected */
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = it};
        epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event);
    } else if ((got = recv(it->fd, bytes, sizeof bytes, 0)) < 0) {
        if (errno == EAGAIN)
            return 0;
        return lost(it, "recv");
    }
    if (crowd && got == 0 && it->step && it->step < 5)
        return lost(it, "an end");
    switch (it->step++) {
    case 0:
        if (crowd && send(it->fd, HELLO, 3, MSG_NOSIGNAL) != 3)
            return lost(it, "send");
        if (!crowd)
            say(it->fd, HELLO, 3);
        return 0;
    case 1:
        if (got != 2 || bytes[1])
            errx(1, "no greeting");
        request(bytes);
        say(it->fd, bytes, 10);
        return 0;
    case 2:
        if (got != 10 || bytes[1])
            errx(1, "refused: %d", got > 1 ? bytes[1] : -1);
        it->step = 4;
        /* fall through */
    case 3:
        say(it->fd, question, SIZE);
        return 0;
    case 4:
        if (got != sizeof(uint64_t))
            errx(1, "no answer");
        return 0;
    default:
        if (got)
            errx(1, "more than the answer");
        close(it->fd);
        return 1;
    }
}

/* -- the crowd: half-open connections, the oldest of which is replaced at every tick --------------------------------- */

static sem_t filled;

static int half_open(void) {
    int fd = opened(SOCK_NONBLOCK);
    send(fd, HELLO, 1, MSG_NOSIGNAL); /* one that waits in a backlog says nothing */
    return fd;
}

static void *stand(void *nothing) {
    static int fds[CROWD];
    for (int i = 0; i < crowd; i++) {
        fds[i] = half_open();
        if (i % AT_ONCE == AT_ONCE - 1)
            usleep(TICK);
    }
    sem_post(&filled);
    for (int i = 0;; i = (i + 1) % crowd) {
        close(fds[i]);
        fds[i] = half_open();
        usleep(TICK);
    }
    return nothing;
}

static void gather(int number) {
    pthread_t thread;
    crowd = number < CROWD ? number : CROWD;
    sem_init(&filled, 0, 0);
    if (pthread_create(&thread, NULL, stand, NULL))
        errx(1, "no thread");
    sem_wait(&filled);
}

static int by_size(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void connections(double seconds, int number) {
    static struct client clients[MOST];
    struct epoll_event events[64];
    size_t count = 0, most = seconds * PER_SECOND;
    float *times = malloc(most * sizeof *times);
    poller = epoll_create1(0);
    double start = now();
    for (int i = 0; i < number; i++)
        begin(&clients[i]);
    for (int live = number; live;) {
        int found = epoll_wait(poller, events, 64, crowd ? 10 : 10000);
        if (found <= 0 && !crowd)
            errx(1, "nothing for ten seconds");
        if (crowd && now() >= start + seconds)
            break;
        for (int i = 0; i < found; i++) {
            struct client *it = events[i].data.ptr;
            int over = go_on(it);
            if (!over)
                continue;
            double time = now();
            if (over > 0 && count < most)
                times[count++] = (time - it->start) * 1e6;
            if (time < start + seconds)
                begin(it);
            else
                live--;
        }
    }
    double took = now() - start;
    if (!count)
        times[count] = 0;
    qsort(times, count, sizeof *times, by_size);
    printf("{\"count\": %zu, \"seconds\": %f, \"p50\": %.1f, \"p99\": %.1f}\n", count, took, times[count / 2],
           times[count * 99 / 100]);
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "serve"))
        serve(atoi(words[2]));
    if (count < 5)
        errx(2, "usage: socks serve PORT | socks bulk|connections|crowded PROXY TARGET SECONDS [N [CROWD]]");
    proxy = loopback(atoi(words[2]));
    target = loopback(atoi(words[3]));
    direct = !atoi(words[2]);
    if (!strcmp(words[1], "bulk"))
        bulk(atof(words[4]));
    else {
        if (!strcmp(words[1], "crowded") && count > 6)
            gather(atoi(words[6]));
        connections(atof(words[4]), count > 5 && atoi(words[5]) < MOST ? atoi(words[5]) : 1);
    }
}
