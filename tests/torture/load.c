/* Load for a soak test: servers, and clients that never stop.
 *
 *     load echo PORT               on 127.0.0.1: sends back what it gets, and ends when its client does
 *     load count PORT              on 127.0.0.1: counts what it gets, checks each block, and answers the count
 *     load connect PORT THREADS    opens connections one after the other in each thread: 100 bytes there and back
 *     load pour PORT THREADS SIZE  sends SIZE MiB on each connection, and checks the count
 *
 * The clients print a line each second, until standard input ends:
 *     {"done": connections, "failed": connections, "bytes": bytes, "p50": µs, "p99": µs}
 * The first three are totals; the times from connect to the last byte are those of the last second.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ASK = 100, BLOCK = 1 << 18, EVENTS = 256, BUCKETS = 4096, PATIENCE = 60, BACKLOG = 4096 };

static struct sockaddr_in place;
static long size;
static atomic_long done, failed, bytes, counts[BUCKETS];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* Steps of 0.5 % from 1 µs on. */
static int bucket(double seconds) {
    double number = log(seconds * 1e6) / log(1.005);
    return number < 0 ? 0 : number < BUCKETS - 1 ? number : BUCKETS - 1;
}

static double microseconds(int bucket) { return pow(1.005, bucket + 1); }

static int listening(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&place, sizeof place) || listen(fd, BACKLOG))
        err(1, "listen");
    return fd;
}

static void echo(void) {
    static char data[BLOCK];
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    int poller = epoll_create1(0), server = listening();
    event.data.fd = server;
    epoll_ctl(poller, EPOLL_CTL_ADD, server, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int at = 0; at < ready; at++) {
            int fd = events[at].data.fd;
            if (fd == server) {
                event.data.fd = accept4(server, NULL, NULL, SOCK_CLOEXEC);
                if (event.data.fd >= 0)
                    epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            ssize_t got = recv(fd, data, sizeof data, 0);
            if (got <= 0 || send(fd, data, got, MSG_NOSIGNAL) != got)
                close(fd);
        }
    }
}

/* Returns 0 at the end of the stream. */
static int whole(int fd, char *data, size_t most, size_t *got) {
    *got = 0;
    while (*got < most) {
        ssize_t some = recv(fd, data + *got, most - *got, MSG_WAITALL);
        if (some <= 0)
            return some;
        *got += some;
    }
    return 1;
}

static void *counted(void *argument) {
    int fd = (intptr_t)argument;
    char *data = malloc(BLOCK);
    uint64_t total = 0, number = 0;
    size_t got;
    int more;
    do {
        more = whole(fd, data, BLOCK, &got);
        total += got;
        if (got >= sizeof number && memcmp(data, &number, sizeof number))
            total = UINT64_MAX / 2; /* a block that is not the next one: no client has sent so much */
        number++;
    } while (more > 0);
    if (more == 0)
        send(fd, &total, sizeof total, MSG_NOSIGNAL);
    close(fd);
    free(data);
    return NULL;
}

static void count(void) {
    int server = listening();
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept4(server, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, &detached, counted, (void *)(intptr_t)fd))
            close(fd);
    }
}

static int connected(void) {
    struct timeval patience = {.tv_sec = PATIENCE};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd >= 0 && !connect(fd, (struct sockaddr *)&place, sizeof place))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static int asked(unsigned *seed) {
    char data[ASK], back[ASK];
    size_t got;
    int fd = connected();
    if (fd < 0)
        return 0;
    for (int at = 0; at < ASK; at++)
        data[at] = rand_r(seed);
    int right = send(fd, data, ASK, MSG_NOSIGNAL) == ASK && whole(fd, back, ASK, &got) > 0 && !memcmp(data, back, ASK) &&
                !shutdown(fd, SHUT_WR) && recv(fd, back, 1, 0) == 0;
    close(fd);
    if (right)
        bytes += 2 * ASK;
    return right;
}

static int poured(char *data) {
    uint64_t total, number;
    size_t got;
    int fd = connected();
    if (fd < 0)
        return 0;
    for (number = 0; number < (uint64_t)size * (1 << 20) / BLOCK; number++) {
        memcpy(data, &number, sizeof number);
        for (size_t at = 0; at < BLOCK;) {
            ssize_t sent = send(fd, data + at, BLOCK - at, MSG_NOSIGNAL);
            if (sent < 0) {
                close(fd);
                return 0;
            }
            at += sent;
        }
        bytes += BLOCK;
    }
    int right = !shutdown(fd, SHUT_WR) && whole(fd, (char *)&total, sizeof total, &got) > 0 && total == number * BLOCK;
    close(fd);
    return right;
}

static void *client(void *argument) {
    unsigned seed = (intptr_t)argument;
    char *data = calloc(1, BLOCK);
    for (;;) {
        double begun = now();
        if (size ? poured(data) : asked(&seed)) {
            done++;
            counts[bucket(now() - begun)]++;
        } else {
            failed++;
            usleep(10000);
        }
    }
    return NULL;
}

static double percentile(const long *some, long total, double part) {
    long seen = 0;
    for (int number = 0; number < BUCKETS; number++)
        if ((seen += some[number]) >= total * part && seen)
            return microseconds(number);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3)
        errx(2, "see the source");
    place = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[2])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(argv[1], "echo"))
        echo();
    if (!strcmp(argv[1], "count"))
        count();
    if (argc < 4)
        errx(2, "see the source");
    size = argc > 4 ? atol(argv[4]) : 0;
    for (intptr_t number = 1; number <= atol(argv[3]); number++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, client, (void *)number))
            err(1, "pthread_create");
    }
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (!poll(&input, 1, 1000)) {
        static long some[BUCKETS];
        long total = 0;
        for (int number = 0; number < BUCKETS; number++)
            total += some[number] = atomic_exchange(&counts[number], 0);
        printf("{\"done\": %ld, \"failed\": %ld, \"bytes\": %ld, \"p50\": %.0f, \"p99\": %.0f}\n", (long)done, (long)failed,
               (long)bytes, percentile(some, total, 0.5), percentile(some, total, 0.99));
        fflush(stdout);
    }
    return 0;
}
