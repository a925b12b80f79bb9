/* The floor of a fan-out: what send() costs, with nothing around it.
 *
 * usage: send_floor CLIENTS BYTES
 *
 * Listens on a free port of 127.0.0.1 and prints it, takes CLIENTS WebSocket clients (any handshake is answered, any
 * subscription is granted), and then for each line "COUNT" on standard input sends COUNT frames of BYTES bytes to
 * every client, one send() a frame.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char SHAKEN[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char SUBSCRIBED[] = "\x81\x15{\"type\":\"subscribed\"}";

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void send_all(int socket, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(socket, data, size, MSG_NOSIGNAL); /* blocks while the client is behind */
        if (sent < 0) fail("send");
        data += sent;
        size -= sent;
    }
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: send_floor CLIENTS BYTES\n");
        return 2;
    }
    int clients = atoi(arguments[1]), size = atoi(arguments[2]), one = 1, buffer_bytes = 4 << 20;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t address_bytes = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    getsockname(listener, (void *)&address, &address_bytes);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    int *sockets = malloc(sizeof *sockets * clients);
    char request[4096];
    for (int i = 0; i < clients; i++) {
        if ((sockets[i] = accept(listener, NULL, NULL)) < 0) fail("accept");
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(sockets[i], SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
        if (recv(sockets[i], request, sizeof request, 0) <= 0) fail("handshake");
        send_all(sockets[i], SHAKEN, sizeof SHAKEN - 1);
        send_all(sockets[i], SUBSCRIBED, sizeof SUBSCRIBED - 1);
    }

    /* {"op":"INSERT","sent_us":1234567890123456,"x":"xxxx…"} in one text frame */
    char *frame = malloc(size + 1);
    frame[0] = '\x81', frame[1] = 126, frame[2] = (size - 4) >> 8, frame[3] = (size - 4) & 255;
    int head = 4 + sprintf(frame + 4, "{\"op\":\"INSERT\",\"sent_us\":");
    memset(frame + head, 'x', size - head);
    memcpy(frame + head + 16, ",\"x\":\"", 6);
    memcpy(frame + size - 2, "\"}", 2);

    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        int messages = atoi(line);
        for (int j = 0; j < messages; j++) {
            struct timespec time;
            char digits[24];
            clock_gettime(CLOCK_REALTIME, &time);
            snprintf(digits, sizeof digits, "%lld", time.tv_sec * 1000000LL + time.tv_nsec / 1000);
            memcpy(frame + head, digits, 16);
            for (int i = 0; i < clients; i++) send_all(sockets[i], frame, size);
        }
    }
    return 0;
}
