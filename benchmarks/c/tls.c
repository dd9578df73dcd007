/* Clients of a relay that ends TLS at 127.0.0.1. What they say reaches a server behind it: `socks serve`, `crowd serve`.
 *
 *     tls full PORT SECONDS N             N at a time: a handshake, a question of 64 bytes, its answer and an end
 *     tls resumed PORT SECONDS N          the same, and each takes up the session of the last one in its place
 *     tls crowded PORT SECONDS N CROWD    as `full`, beside CROWD connections that say the first byte of a handshake
 *     tls ping PORT SECONDS               one connection, and 64 bytes there and back on it, over and over
 *     tls drain PORT SECONDS              one connection, and the zeros that the server sends
 *
 * Of a crowd, 1,000 a second are replaced, the oldest first. A client that is not served in time then counts as nothing.
 * The first four print {"count": …, "seconds": …, "p50": µs, "p99": µs}, with the share of resumed sessions, from 0 to 1.
 * `drain` prints {"bytes": …, "seconds": …}. The certificate is not verified: its cost is not the relay's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, PIECE = 1 << 18, MOST = 1024, PER_SECOND = 60000, CROWD = 8192, AT_ONCE = 32, TICK = 1000 };

struct client {
    SSL *tls;
    SSL_SESSION *session;
    size_t got;
    double start;
    int fd, asked;
};

static const char question[SIZE] = {[SIZE - 1] = 1};
static struct sockaddr_in relay;
static SSL_CTX *context;
static int poller, crowd, resumes, resumed;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int opened(int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(fd, (struct sockaddr *)&relay, sizeof relay) && errno != EINPROGRESS)
        err(1, "connect");
    return fd;
}

/* A ticket has come: the newest one is used. */
static int remember(SSL *tls, SSL_SESSION *session) {
    struct client *it = SSL_get_app_data(tls);
    if (!it || !resumes)
        return 0;
    SSL_SESSION_free(it->session);
    it->session = session;
    return 1;
}

static SSL *session_on(int fd) {
    SSL *tls = SSL_new(context);
    if (!tls || !SSL_set_fd(tls, fd) || !SSL_set_tlsext_host_name(tls, "localhost"))
        errx(1, "no session");
    SSL_set_connect_state(tls);
    return tls;
}

static void watch(struct client *it, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = it};
    epoll_ctl(poller, operation, it->fd, &event);
}

static void begin(struct client *it) {
    it->start = now();
    it->got = it->asked = 0;
    it->fd = opened(SOCK_NONBLOCK);
    it->tls = session_on(it->fd);
    SSL_set_app_data(it->tls, it);
    if (it->session && !SSL_set_session(it->tls, it->session))
        errx(1, "the session cannot be taken up");
    watch(it, EPOLL_CTL_ADD, EPOLLOUT);
}

static int finish(struct client *it, int over) {
    if (over > 0) {
        resumed += SSL_session_reused(it->tls);
        SSL_shutdown(it->tls);
    }
    SSL_free(it->tls);
    close(it->fd);
    return over;
}

/* Returns 1 when it is over, -1 if it was lost, which is allowed beside a crowd alone. */
static int go_on(struct client *it) {
    char bytes[SIZE];
    int done;
    ERR_clear_error();
    errno = 0;
    if (!it->asked) {
        if ((done = SSL_do_handshake(it->tls)) == 1) {
            it->asked = 1;
            if (SSL_write(it->tls, question, SIZE) != SIZE)
                errx(1, "the question cannot be sent");
        }
    }
    if (it->asked)
        while ((done = SSL_read(it->tls, bytes, sizeof bytes)) > 0)
            it->got += done;
    switch (SSL_get_error(it->tls, done)) {
    case SSL_ERROR_WANT_READ:
        watch(it, EPOLL_CTL_MOD, EPOLLIN);
        return 0;
    case SSL_ERROR_WANT_WRITE:
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        break;
    default: /* some relays end without close_notify */
        if (it->got != sizeof(uint64_t)) {
            if (!crowd)
                errx(1, "lost: %s, %s", strerror(errno), ERR_reason_error_string(ERR_peek_error()));
            return finish(it, -1);
        }
        SSL_set_quiet_shutdown(it->tls, 1);
    }
    if (it->got != sizeof(uint64_t) && !crowd)
        errx(1, "no answer");
    return finish(it, it->got == sizeof(uint64_t) ? 1 : -1);
}

/* -- the crowd: half-open connections, the oldest of which is replaced at every tick --------------------------------- */

static sem_t filled;

static int half_open(void) {
    int fd = opened(SOCK_NONBLOCK);
    send(fd, "\x16", 1, MSG_NOSIGNAL); /* one that waits in a backlog says nothing */
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

/* -- what is measured ------------------------------------------------------------------------------------------------ */

static int by_size(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

static void report(float *times, size_t count, double took) {
    if (!count)
        times[count] = 0;
    qsort(times, count, sizeof *times, by_size);
    printf("{\"count\": %zu, \"seconds\": %f, \"p50\": %.1f, \"p99\": %.1f, \"resumed\": %.4f}\n", count, took,
           times[count / 2], times[count * 99 / 100], count ? (double)resumed / count : 0);
}

static void connections(double seconds, int number) {
    static struct client clients[MOST];
    struct epoll_event events[64];
    size_t count = 0, most = seconds * PER_SECOND;
    float *times = malloc((most + 1) * sizeof *times);
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
    report(times, count, now() - start);
}

static SSL *connected(void) {
    SSL *tls = session_on(opened(0));
    if (SSL_do_handshake(tls) != 1)
        errx(1, "no handshake: %s", ERR_reason_error_string(ERR_peek_error()));
    return tls;
}

static void ping(double seconds) {
    size_t count = 0, most = seconds * PER_SECOND;
    float *times = malloc((most + 1) * sizeof *times);
    char bytes[SIZE] = {0};
    SSL *tls = connected();
    double start = now(), begun;
    while ((begun = now()) < start + seconds && count < most) {
        if (SSL_write(tls, bytes, SIZE) != SIZE)
            errx(1, "cannot send");
        for (int got = 0, more; got < SIZE; got += more)
            if ((more = SSL_read(tls, bytes + got, SIZE - got)) <= 0)
                errx(1, "the connection has ended");
        times[count++] = (now() - begun) * 1e6;
    }
    report(times, count, now() - start);
}

static void drain(double seconds) {
    static char bytes[PIECE];
    SSL *tls = connected();
    long long moved = 0;
    int got;
    if (SSL_write(tls, "d1", 2) != 2)
        errx(1, "cannot send");
    double start = now();
    while (now() < start + seconds) {
        if ((got = SSL_read(tls, bytes, sizeof bytes)) <= 0)
            errx(1, "the connection has ended");
        moved += got;
    }
    printf("{\"bytes\": %lld, \"seconds\": %f}\n", moved, now() - start);
}

int main(int count, char **words) {
    if (count < 4)
        errx(2, "usage: tls full|resumed|crowded|ping|drain PORT SECONDS [N [CROWD]]");
    signal(SIGPIPE, SIG_IGN);
    relay = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons(atoi(words[2])), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    context = SSL_CTX_new(TLS_client_method());
    resumes = !strcmp(words[1], "resumed");
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, remember);
    if (!strcmp(words[1], "ping"))
        ping(atof(words[3]));
    else if (!strcmp(words[1], "drain"))
        drain(atof(words[3]));
    else {
        if (!strcmp(words[1], "crowded") && count > 5)
            gather(atoi(words[5]));
        connections(atof(words[3]), count > 4 && atoi(words[4]) < MOST ? atoi(words[4]) : 1);
    }
}
