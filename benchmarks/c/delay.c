/* A long link: a TCP proxy that passes every byte on late, and no faster than the link carries.
 *
 *     delay LISTEN_PORT TARGET_PORT MILLISECONDS MBITS        (both on 127.0.0.1; the delay is of each direction)
 *
 * A connect costs a round trip, as it does on a long link: what either end sends first waits for TCP's handshake.
 *
 * Its queue has no bound, as a link has no say in what its ends keep in flight: it reads at once whatever comes, and so
 * TCP's own windows play no part, only those of the protocol above it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 16 };
static const long SECOND = 1000000000;

struct chunk {
    struct chunk *next;
    long due;           /* monotonic nanoseconds */
    ssize_t size;       /* 0 is the end */
    char bytes[];
};

struct direction {      /* one thread reads and one writes */
    int from, to;
    long open;          /* when its sender knows of the connection */
    struct link *link;
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct chunk *first, **last;
};

struct link {           /* one connection; the last of its four threads closes both sockets */
    int threads;
    struct direction up, down;
};

static long delay, bytes_per_second;

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void wait_until(long moment) {
    struct timespec time = {moment / SECOND, moment % SECOND};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL))
        ;
}

static void leave(struct link *link) {
    if (__atomic_sub_fetch(&link->threads, 1, __ATOMIC_SEQ_CST))
        return;
    close(link->up.from);
    close(link->up.to);
    free(link);
}

static void *reads(void *argument) {
    struct direction *way = argument;
    long free_at = 0;   /* when the link has sent what it took */
    ssize_t size;
    do {
        struct chunk *chunk = malloc(sizeof *chunk + CHUNK);
        if (!chunk)
            err(1, "the queue");
        size = recv(way->from, chunk->bytes, CHUNK, 0);
        long time = now();
        if (time < way->open)
            time = way->open;
        free_at = (free_at > time ? free_at : time) + (size > 0 ? size * SECOND / bytes_per_second : 0);
        *chunk = (struct chunk){.due = free_at + delay, .size = size > 0 ? size : 0};
        chunk = realloc(chunk, sizeof *chunk + chunk->size);
        pthread_mutex_lock(&way->lock);
        *way->last = chunk;
        way->last = &chunk->next;
        pthread_cond_signal(&way->filled);
        pthread_mutex_unlock(&way->lock);
    } while (size > 0);
    leave(way->link);
    return NULL;
}

static struct chunk *take(struct direction *way) {
    pthread_mutex_lock(&way->lock);
    while (!way->first)
        pthread_cond_wait(&way->filled, &way->lock);
    struct chunk *chunk = way->first;
    if (!(way->first = chunk->next))
        way->last = &way->first;
    pthread_mutex_unlock(&way->lock);
    return chunk;
}

static void *writes(void *argument) {
    struct direction *way = argument;
    ssize_t size;
    do {
        struct chunk *chunk = take(way);
        size = chunk->size;
        wait_until(chunk->due);
        for (ssize_t done = 0, sent; done < size; done += sent)
            if ((sent = send(way->to, chunk->bytes + done, size - done, MSG_NOSIGNAL)) < 0) {
                shutdown(way->from, SHUT_RDWR);     /* wakes the reader, which tells the end */
                break;
            }
        free(chunk);
    } while (size);
    shutdown(way->to, SHUT_WR);
    leave(way->link);
    return NULL;
}

static void carry(struct direction *way, int from, int to, long open, struct link *link) {
    pthread_t thread;
    *way = (struct direction){.from = from, .to = to, .open = open, .link = link, .lock = PTHREAD_MUTEX_INITIALIZER,
                              .filled = PTHREAD_COND_INITIALIZER, .last = &way->first};
    if (pthread_create(&thread, NULL, reads, way) || pthread_detach(thread) || pthread_create(&thread, NULL, writes, way) ||
        pthread_detach(thread))
        errx(1, "no thread");
}

int main(int count, char **words) {
    if (count != 5)
        errx(2, "usage: delay LISTEN_PORT TARGET_PORT MILLISECONDS MBITS");
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in there = here;
    there.sin_port = htons(atoi(words[2]));
    delay = atol(words[3]) * (SECOND / 1000);
    bytes_per_second = atol(words[4]) * (1000000 / 8);
    int listener = socket(AF_INET, SOCK_STREAM, 0), client;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 128))
        err(1, "port %s", words[1]);
    while ((client = accept(listener, NULL, NULL)) >= 0) {
        int server = socket(AF_INET, SOCK_STREAM, 0);
        struct link *link = malloc(sizeof *link);
        if (!link || connect(server, (struct sockaddr *)&there, sizeof there))
            err(1, "port %s", words[2]);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        link->threads = 4;
        long begun = now();     /* SYN, SYN-ACK and ACK take the delay each */
        carry(&link->up, client, server, begun + 2 * delay, link);
        carry(&link->down, server, client, begun + 3 * delay, link);
    }
    err(1, "accept");
}
