/* 64 bytes to and fro on one connection, and how long each round trip takes.
 *
 *     pingpong echo PORT              serves one connection after another on 127.0.0.1
 *     pingpong ping PORT SECONDS      prints {"count": …, "seconds": …, "p50": µs, "p99": µs}
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, PER_SECOND = 400000 };

static struct sockaddr_in loopback(const char *port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void echo(const char *port) {
    struct sockaddr_in here = loopback(port);
    char bytes[4096];
    int listener = socket(AF_INET, SOCK_STREAM, 0), one;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 128))
        err(1, "port %s", port);
    while ((one = accept(listener, NULL, NULL)) >= 0) {
        ssize_t got;
        setsockopt(one, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        while ((got = recv(one, bytes, sizeof bytes, 0)) > 0 && send(one, bytes, got, MSG_NOSIGNAL) == got)
            ;
        close(one);
    }
}

static void round_trip(int fd) {
    char bytes[SIZE] = {0};
    if (send(fd, bytes, SIZE, MSG_NOSIGNAL) != SIZE || recv(fd, bytes, SIZE, MSG_WAITALL) != SIZE)
        err(1, "the connection ended");
}

static int by_size(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void ping(const char *port, double seconds) {
    struct sockaddr_in there = loopback(port);
    size_t count = 0, most = seconds * PER_SECOND;
    float *times = malloc(most * sizeof *times);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (!times || connect(fd, (struct sockaddr *)&there, sizeof there))
        err(1, "port %s", port);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    for (double warm = now() + 0.2; now() < warm;)
        round_trip(fd);
    double start = now(), before = start;
    while (count < most && before < start + seconds) {
        round_trip(fd);
        double after = now();
        times[count++] = (after - before) * 1e6;
        before = after;
    }
    qsort(times, count, sizeof *times, by_size);
    printf("{\"count\": %zu, \"seconds\": %.6f, \"p50\": %.2f, \"p99\": %.2f}\n", count, before - start,
           times[count / 2], times[count * 99 / 100]);
}

int main(int count, char **words) {
    if (count == 3 && !strcmp(words[1], "echo"))
        echo(words[2]);
    else if (count == 4 && !strcmp(words[1], "ping"))
        ping(words[2], atof(words[3]));
    else
        errx(2, "usage: pingpong echo PORT | ping PORT SECONDS");
}
