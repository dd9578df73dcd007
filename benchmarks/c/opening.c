/* How long it takes from the beginning of a connection to its first byte, one connection after another.
 *
 *     opening echo PORT               serves any number of connections on 127.0.0.1: sends back what it gets
 *     opening greet PORT              likewise, but sends 64 bytes first, as servers of mail and many databases do
 *     opening speak PORT SECONDS      sends 64 bytes and times the first of the answer
 *     opening hear PORT SECONDS       says nothing and times the first byte of the greeting
 *
 * The latter two print {"count": …, "p50": µs, "p99": µs}. Each connection is over at both ends before the next begins.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, PER_SECOND = 20000, PATIENCE = 10 };
static const double WARM = 0.5;     /* seconds */

static struct sockaddr_in loopback(const char *port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void answer(int fd) {
    char bytes[4096];
    ssize_t got = recv(fd, bytes, sizeof bytes, 0);
    if (got <= 0 || send(fd, bytes, got, MSG_NOSIGNAL) != got)
        close(fd);
}

static void serve(const char *port, int greets) {
    struct sockaddr_in here = loopback(port);
    char greeting[SIZE] = {0};
    int listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 128))
        err(1, "port %s", port);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    while (epoll_wait(poller, &event, 1, -1) >= 0) {
        if (event.data.fd != listener) {
            answer(event.data.fd);
            continue;
        }
        event.data.fd = accept(listener, NULL, NULL);
        setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
        if (greets)
            send(event.data.fd, greeting, SIZE, MSG_NOSIGNAL);
    }
}

static double first_byte(struct sockaddr_in there, int speaks) {
    char bytes[SIZE] = {0};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){PATIENCE, 0}, sizeof(struct timeval));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    double start = now();
    if (connect(fd, (struct sockaddr *)&there, sizeof there))
        err(1, "connect");
    if ((speaks && send(fd, bytes, SIZE, MSG_NOSIGNAL) != SIZE) || recv(fd, bytes, 1, 0) != 1)
        err(1, "no first byte");
    double time = now() - start;
    if (recv(fd, bytes, SIZE - 1, MSG_WAITALL) != SIZE - 1 || shutdown(fd, SHUT_WR) || recv(fd, bytes, 1, 0))
        err(1, "no clean end");
    close(fd);
    return time;
}

static int by_size(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void measure(const char *port, double seconds, int speaks) {
    struct sockaddr_in there = loopback(port);
    size_t count = 0, most = seconds * PER_SECOND;
    float *times = malloc(most * sizeof *times);
    for (double warm = now() + WARM; now() < warm;)
        first_byte(there, speaks);
    for (double end = now() + seconds; count < most && now() < end;)
        times[count++] = first_byte(there, speaks) * 1e6;
    qsort(times, count, sizeof *times, by_size);
    printf("{\"count\": %zu, \"p50\": %.2f, \"p99\": %.2f}\n", count, times[count / 2], times[count * 99 / 100]);
}

int main(int count, char **words) {
    if (count == 3 && (!strcmp(words[1], "echo") || !strcmp(words[1], "greet")))
        serve(words[2], !strcmp(words[1], "greet"));
    else if (count == 4 && (!strcmp(words[1], "speak") || !strcmp(words[1], "hear")))
        measure(words[2], atof(words[3]), !strcmp(words[1], "speak"));
    else
        errx(2, "usage: opening echo|greet PORT | opening speak|hear PORT SECONDS");
}
