/* Clients of a relay whose processes are killed meanwhile, and what becomes of each. The server is `socks serve`.
 *
 *     lost PORT SECONDS N     N at a time, as fast as they are served: a connect, 64 bytes, an answer and an end
 *
 * For each client that is not served it prints what happened, the client's port, and when it began and ended, in seconds
 * of the monotonic clock: `refused`, `reset`, `ended` (an EOF without the answer) or `late` (nothing for 30 seconds).
 * The last line is {"count": …, "seconds": …, "p99": µs, "longest": µs}.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, MOST = 1024, PER_SECOND = 60000 };
static const double PATIENCE = 30; /* seconds */

struct client {
    double start;
    size_t got;
    int fd, asked, port;
};

static const char question[SIZE] = {[SIZE - 1] = 1};
static struct sockaddr_in relay;
static int poller;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void begin(struct client *it) {
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = it};
    *it = (struct client){.start = now(), .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    if (connect(it->fd, (struct sockaddr *)&relay, sizeof relay) && errno != EINPROGRESS && errno != ECONNREFUSED)
        err(1, "connect");
    getsockname(it->fd, (struct sockaddr *)&here, &size);
    it->port = ntohs(here.sin_port);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, it->fd, &event))
        err(1, "epoll_ctl");
}

static int lost(struct client *it, const char *how) {
    printf("%s %d %.6f %.6f\n", how, it->port, it->start, now());
    close(it->fd);
    return -1;
}

/* Returns 1 when it has been served, -1 when it is lost. */
static int go_on(struct client *it) {
    char bytes[SIZE];
    if (!it->asked) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = it};
        if (send(it->fd, question, SIZE, MSG_NOSIGNAL) != SIZE)
            return lost(it, errno == ECONNREFUSED ? "refused" : "reset");
        it->asked = 1;
        epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event);
        return 0;
    }
    ssize_t got = recv(it->fd, bytes, sizeof bytes, 0);
    if (got > 0)
        it->got += got;
    if (got > 0 || (got < 0 && errno == EAGAIN))
        return 0;
    if (it->got != sizeof(uint64_t))
        return lost(it, got ? "reset" : "ended");
    close(it->fd);
    return 1;
}

static int by_size(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void clients(double seconds, int number) {
    static struct client all[MOST];
    struct epoll_event events[64];
    size_t count = 0, most = seconds * PER_SECOND;
    float *times = malloc((most + 1) * sizeof *times);
    double start = now(), looked = start;
    poller = epoll_create1(0);
    for (int i = 0; i < number; i++)
        begin(&all[i]);
    for (int live = number; live;) {
        int found = epoll_wait(poller, events, 64, 1000);
        double time = now();
        for (int i = 0; i < found; i++) {
            struct client *it = events[i].data.ptr;
            int over = it->fd < 0 ? 0 : go_on(it);
            if (over > 0 && count < most)
                times[count++] = (time - it->start) * 1e6;
            if (over && time < start + seconds)
                begin(it);
            else if (over)
                it->fd = -1, live--;
        }
        if (time < looked + 1)
            continue;
        looked = time;
        for (int i = 0; i < number; i++)
            if (all[i].fd >= 0 && time > all[i].start + PATIENCE) {
                lost(&all[i], "late");
                if (time < start + seconds)
                    begin(&all[i]);
                else
                    all[i].fd = -1, live--;
            }
    }
    double took = now() - start;
    if (!count)
        errx(1, "no client was served");
    qsort(times, count, sizeof *times, by_size);
    printf("{\"count\": %zu, \"seconds\": %f, \"p99\": %.1f, \"longest\": %.1f}\n", count, took, times[count * 99 / 100],
           times[count - 1]);
}

int main(int count, char **words) {
    if (count != 4 || atoi(words[3]) < 1 || atoi(words[3]) > MOST)
        errx(2, "usage: lost PORT SECONDS N");
    relay = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(atoi(words[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    clients(atof(words[2]), atoi(words[3]));
}
