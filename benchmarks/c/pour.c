/* Bytes without end, for a while: what a pipe to a server and back is loaded with.
 *
 * pour write SECONDS        writes zeros to standard output for so long
 * pour read                 reads standard input to its end
 * pour give PORT SECONDS    sends zeros to one client for so long, from its connect on
 * pour take PORT            reads from one client to its end, and answers it with what `read` prints
 *
 * `read` and `take` tell {"bytes": …, "seconds": …}, from the first byte to the last.
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIECE (1 << 18)

static char piece[PIECE];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int client_of(int port) {
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) exit(1);
    return accept(listener, NULL, NULL);
}

static void put(int sink, double seconds) {
    double end = now() + seconds;
    while (now() < end)
        if (write(sink, piece, PIECE) < 0) exit(1);
}

static void get(int source, int sink) {
    char text[100];
    double begin = 0;
    long long bytes = 0;
    ssize_t size;
    while ((size = read(source, piece, PIECE)) > 0) {
        if (!bytes) begin = now();
        bytes += size;
    }
    if (size < 0) exit(1);
    size = snprintf(text, sizeof text, "{\"bytes\": %lld, \"seconds\": %.6f}\n", bytes, now() - begin);
    if (write(sink, text, size) != size) exit(1);
}

int main(int count, char **words) {
    signal(SIGPIPE, SIG_IGN);
    if (count == 3 && !strcmp(words[1], "write")) put(1, atof(words[2]));
    else if (count == 2 && !strcmp(words[1], "read")) get(0, 1);
    else if (count == 4 && !strcmp(words[1], "give")) put(client_of(atoi(words[2])), atof(words[3]));
    else if (count == 3 && !strcmp(words[1], "take")) {
        int client = client_of(atoi(words[2]));
        get(client, client);
    } else return 2;
    return 0;
}
