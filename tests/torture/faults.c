/* Faults of system calls for one process: built with "gcc -shared -fPIC -O2 faults.c -ldl", loaded by LD_PRELOAD.

   TORTURE_SEED decides, TORTURE_RATE is the chance of a fault in 65536 calls, TORTURE_HARD=1 adds errors that may end a
   connection, TORTURE_COUNTS names a file of 64-bit counters, one for each kind of fault. Faults that a correct program
   does not notice: calls that would block although they would not, short reads and writes of every length, interrupted
   calls, wake-ups without a cause, clients that have gone. They begin when the counter ARMED is not 0. Only sockets and pipes of the loop are touched: a call with a
   blocking descriptor is passed on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { AGAIN, SHORT, INTERRUPTED, SPURIOUS, ABORTED, HARD, CALLS, ARMED, KINDS };

static uint64_t own[KINDS];
static volatile uint64_t *counts = own;
static unsigned rate, hard;
static _Atomic uint64_t state = 88172645463325252ULL;

static uint64_t draw(void) {
    uint64_t x = __atomic_add_fetch((uint64_t *)&state, 0x9E3779B97F4A7C15ULL, __ATOMIC_RELAXED);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

static void count(int kind) { __atomic_add_fetch((uint64_t *)&counts[kind], 1, __ATOMIC_RELAXED); }

__attribute__((constructor)) static void start(void) {
    const char *seed = getenv("TORTURE_SEED"), *chance = getenv("TORTURE_RATE"), *path = getenv("TORTURE_COUNTS");
    hard = getenv("TORTURE_HARD") != NULL;
    rate = chance ? (unsigned)atoi(chance) : 0;
    state = (seed ? strtoull(seed, NULL, 10) : 1) * 2862933555777941757ULL + 3037000493ULL;
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *found = mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (found != MAP_FAILED) counts = found;
        close(file);
    }
}

/* Return whether the next call fails. */
static int chosen(void) {
    if (!counts[ARMED]) return 0;
    count(CALLS);
    return rate && (draw() & 65535) < rate;
}

/* Return whether a descriptor is to be spared: a blocking one, and one of a local pair, by which threads wake each other:
   the system takes a byte there unless the pair is full, so that its reader wakes anyway. */
static int is_spared(int fd) {
    int saved = errno, flags = fcntl(fd, F_GETFL), domain = AF_UNIX;
    socklen_t size = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    errno = saved;
    return flags < 0 || !(flags & O_NONBLOCK) || domain == AF_UNIX;
}

static ssize_t fail(int kind, int number) {
    count(kind);
    errno = number;
    return -1;
}

/* Return a shorter length; half of the time a very short one. */
static size_t cut(size_t size) {
    if (size < 2) return size;
    count(SHORT);
    uint64_t x = draw();
    return 1 + (x & 1 ? (x >> 1) % (size - 1) : (x >> 1) % (size < 8 ? size - 1 : 7));
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t recv(int fd, void *buffer, size_t size, int flags) {
    REAL(recv);
    if (chosen() && !(flags & MSG_PEEK) && !is_spared(fd)) {
        switch (draw() % (hard ? 9 : 8)) {
        case 0: case 1: case 2: return fail(AGAIN, EAGAIN);
        case 3: return fail(INTERRUPTED, EINTR);
        case 8: return fail(HARD, ECONNRESET);
        default: size = cut(size);
        }
    }
    return real(fd, buffer, size, flags);
}

ssize_t send(int fd, const void *buffer, size_t size, int flags) {
    REAL(send);
    if (chosen() && !is_spared(fd)) {
        switch (draw() % (hard ? 10 : 8)) {
        case 0: case 1: case 2: return fail(AGAIN, EAGAIN);
        case 3: return fail(INTERRUPTED, EINTR);
        case 8: return fail(HARD, ENOBUFS);
        case 9: return fail(HARD, EPIPE);
        default: size = cut(size);
        }
    }
    return real(fd, buffer, size, flags);
}

ssize_t splice(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t size, unsigned flags) {
    REAL(splice);
    if (chosen()) {
        switch (draw() % (hard ? 9 : 8)) {
        case 0: case 1: case 2: return fail(AGAIN, EAGAIN);
        case 3: return fail(INTERRUPTED, EINTR);
        case 8: return fail(HARD, ENOMEM);
        default: size = cut(size);
        }
    }
    return real(in, in_offset, out, out_offset, size, flags);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags) {
    REAL(accept4);
    if (chosen() && !is_spared(fd)) {
        switch (draw() % (hard ? 4 : 3)) {
        case 0: return (int)fail(AGAIN, EAGAIN);
        case 1: return (int)fail(INTERRUPTED, EINTR);
        case 2: return (int)fail(ABORTED, ECONNABORTED);
        default: return (int)fail(HARD, draw() & 1 ? EMFILE : ENOBUFS);
        }
    }
    return real(fd, address, length, flags);
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout) {
    REAL(epoll_wait);
    if (chosen()) {
        switch (draw() % 3) {
        case 0: return (int)fail(INTERRUPTED, EINTR);
        case 1: count(SPURIOUS); return 0;
        default: count(SPURIOUS); most = 1;
        }
    }
    return real(fd, events, most, timeout);
}

int pipe2(int ends[2], int flags) {
    REAL(pipe2);
    if (chosen() || (counts[ARMED] && draw() % 8 == 0)) return (int)fail(HARD, EMFILE);
    return real(ends, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    REAL(connect);
    if (hard && chosen() && !is_spared(fd)) return (int)fail(HARD, draw() & 1 ? ENOBUFS : EADDRNOTAVAIL);
    return real(fd, address, length);
}

int epoll_ctl(int fd, int what, int other, struct epoll_event *event) {
    REAL(epoll_ctl);
    if (hard && what == EPOLL_CTL_ADD && chosen()) return (int)fail(HARD, ENOSPC);
    return real(fd, what, other, event);
}
