/* Many WebSocket clients of a Rowcast server in one process: they subscribe, read, count and time what comes.
 *
 * usage: load_client PORT PATH CLIENTS
 *
 * Orders come on standard input, one a line; each is answered by one line of JSON on standard output when it is done,
 * or when nothing of it has come for MILLISECONDS (then "missing" is over 0). Everything is read all the time.
 *
 *   open MILLISECONDS              connect, and shake hands with the server
 *   say MESSAGE                    send MESSAGE to the server from every client; %d in it is the client's number
 *   subscribed MILLISECONDS        every client has been sent one more `subscribed`
 *   finished MILLISECONDS          every client has been sent one more end of a snapshot
 *   each COUNT MILLISECONDS        every client has got COUNT more rows
 *   total COUNT MILLISECONDS       all clients together have got COUNT more rows
 *   close                          reset all connections
 *
 * A row is counted where its column `sent_us` stands in a frame, and its latency is the present time minus that
 * column's value, microseconds since 1970. An answer tells of the time since the answer before it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES (1 << 18)
#define MAX_LATENCIES (1 << 25)
#define PONG_SECONDS 10

static const char MARK[] = "\"sent_us\":";
#define MARK_BYTES (sizeof MARK - 1)

typedef struct {
    int socket;
    int shaken; /* the server's HTTP answer has been read */
    long rows;
    long subscribed;
    long finished;
    char *rest; /* a frame, or an answer, of which the end has not come yet */
    size_t rest_bytes;
    size_t rest_room;
} Client;

typedef enum { NOTHING, OPEN, SUBSCRIBED, FINISHED, EACH, TOTAL } Goal;

static Client *clients;
static int client_count, epoll, port;
static const char *path;

static Goal goal;
static long wanted;       /* a client, or all clients together, must come to this */
static long behind;       /* clients that have not */
static int idle_milliseconds;

static long wanted_subscribed, wanted_finished, wanted_each, wanted_total;
static long rows_total, rows_answered, bytes, resyncs, errors, closed;
static long long said_us, first_us, last_us, heard_us;
static int *latencies;
static long latency_count;

static long long now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    return time.tv_sec * 1000000LL + time.tv_nsec / 1000;
}

static void fail(const char *what) {
    fprintf(stderr, "load_client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_all(int socket, const void *data, size_t size) {
    const char *next = data;
    while (size) {
        ssize_t written = send(socket, next, size, MSG_NOSIGNAL);
        if (written < 0) {
            if (errno == EAGAIN || errno == EINTR) continue;
            return; /* closed by the server: the reader will see it */
        }
        next += written;
        size -= written;
    }
}

static void send_frame(int socket, int opcode, const char *payload, size_t size) {
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    unsigned char frame[4096 + 14], *next = frame;
    if (size > 4096) exit(2);
    *next++ = 0x80 | opcode;
    if (size < 126) *next++ = 0x80 | size;
    else *next++ = 0x80 | 126, *next++ = size >> 8, *next++ = size & 255;
    memcpy(next, mask, 4);
    next += 4;
    for (size_t i = 0; i < size; i++) *next++ = payload[i] ^ mask[i & 3];
    write_all(socket, frame, next - frame);
}

static void open_all(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct linger reset = {.l_onoff = 1, .l_linger = 0}; /* no TIME_WAIT: ports are needed again at once */
    char request[512];
    int one = 1;
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                        path, port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    closed = 0;
    for (int i = 0; i < client_count; i++) {
        Client *client = &clients[i];
        *client = (Client){.socket = socket(AF_INET, SOCK_STREAM, 0), .rest = client->rest, .rest_room = client->rest_room};
        if (client->socket < 0) fail("no socket (raise the file limit: ulimit -n)");
        if (connect(client->socket, (void *)&address, sizeof address)) fail("cannot connect");
        setsockopt(client->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(client->socket, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        write_all(client->socket, request, size);
        fcntl(client->socket, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->socket, &event)) fail("epoll");
    }
    wanted_subscribed = wanted_finished = wanted_each = wanted_total = 0;
    rows_total = rows_answered = bytes = resyncs = errors = latency_count = 0;
    said_us = now_us();
}

static void lose(Client *client) {
    if (client->socket < 0) return;
    close(client->socket);
    client->socket = -1;
    closed++;
}

static void count_row(Client *client, const char *digits, const char *end, long long now) {
    long long sent = 0;
    while (digits < end && *digits >= '0' && *digits <= '9') sent = sent * 10 + (*digits++ - '0');
    if (latency_count < MAX_LATENCIES) latencies[latency_count++] = now - sent;
    if (!first_us) first_us = now;
    last_us = heard_us = now;
    rows_total++;
    if (++client->rows == wanted && goal == EACH) behind--;
}

static int begins(const char *payload, size_t size, const char *with) {
    size_t length = strlen(with);
    return size >= length && !memcmp(payload, with, length);
}

static void take_text(Client *client, const char *payload, size_t size, long long now) {
    static size_t usual_place; /* most frames are alike: the column is where it was last time */
    const char *end = payload + size, *mark = payload;
    if (begins(payload, size, "{\"op\":")) {
        if (usual_place + MARK_BYTES > size || memcmp(payload + usual_place, MARK, MARK_BYTES)) {
            mark = memmem(payload, size, MARK, MARK_BYTES);
            if (!mark) return;
            usual_place = mark - payload;
        }
        count_row(client, payload + usual_place + MARK_BYTES, end, now);
        return;
    }
    while ((mark = memmem(mark, end - mark, MARK, MARK_BYTES))) {
        mark += MARK_BYTES;
        count_row(client, mark, end, now);
    }
    if (begins(payload, size, "{\"type\":\"subscribed\"")) {
        heard_us = now;
        if (++client->subscribed == wanted && goal == SUBSCRIBED) behind--;
    } else if (begins(payload, size, "{\"type\":\"snapshot\"")) {
        if (memmem(payload, size, "\"last\":true", 11)) {
            last_us = heard_us = now;
            if (++client->finished == wanted && goal == FINISHED) behind--;
        }
    } else if (begins(payload, size, "{\"type\":\"resync\"")) {
        resyncs++;
        last_us = now;
    } else if (begins(payload, size, "{\"type\":\"error\"")) {
        if (!errors++) fprintf(stderr, "load_client: %.*s\n", (int)size, payload);
    }
}

/* Takes whole frames and returns how many bytes they were. */
static size_t take_frames(Client *client, const char *data, size_t size, long long now) {
    size_t offset = 0;
    if (!client->shaken) {
        const char *end = memmem(data, size, "\r\n\r\n", 4);
        if (!end) return 0;
        if (!begins(data, size, "HTTP/1.1 101")) {
            fprintf(stderr, "load_client: the server refuses: %.*s\n", (int)size, data);
            exit(1);
        }
        client->shaken = 1;
        heard_us = now;
        if (goal == OPEN) behind--;
        offset = end + 4 - data;
    }
    while (size - offset >= 2) {
        const unsigned char *head = (const unsigned char *)data + offset;
        size_t length = head[1] & 127, head_bytes = 2;
        if (length == 126) {
            if (size - offset < 4) break;
            length = head[2] << 8 | head[3];
            head_bytes = 4;
        } else if (length == 127) {
            if (size - offset < 10) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | head[i];
            head_bytes = 10;
        }
        if (size - offset - head_bytes < length) break;
        const char *payload = data + offset + head_bytes;
        int opcode = head[0] & 15;
        if (opcode == 1) take_text(client, payload, length, now);
        else if (opcode == 9) send_frame(client->socket, 10, payload, length);
        offset += head_bytes + length;
    }
    return offset;
}

static void keep_rest(Client *client, const char *data, size_t size) {
    if (client->rest_bytes + size > client->rest_room) {
        client->rest_room = (client->rest_bytes + size) * 2;
        client->rest = realloc(client->rest, client->rest_room);
        if (!client->rest) fail("memory");
    }
    memmove(client->rest + client->rest_bytes, data, size);
    client->rest_bytes += size;
}

static void read_client(Client *client) {
    static char buffer[READ_BYTES];
    ssize_t got = recv(client->socket, buffer, sizeof buffer, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        lose(client);
        return;
    }
    bytes += got;
    long long now = now_us();
    if (client->rest_bytes) {
        keep_rest(client, buffer, got);
        size_t taken = take_frames(client, client->rest, client->rest_bytes, now);
        client->rest_bytes -= taken;
        memmove(client->rest, client->rest + taken, client->rest_bytes);
    } else {
        size_t taken = take_frames(client, buffer, got, now);
        if (taken < (size_t)got) keep_rest(client, buffer + taken, got - taken);
    }
}

static int ascending(const void *left, const void *right) {
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

static int percentile(double share) { return latency_count ? latencies[(long)((latency_count - 1) * share)] : 0; }

static void answer(void) {
    long missing = goal == TOTAL ? (wanted_total > rows_total ? wanted_total - rows_total : 0) : behind;
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"rows\":%ld,\"missing\":%ld,\"said_us\":%lld,\"first_us\":%lld,\"last_us\":%lld,\"now_us\":%lld,"
           "\"p50_us\":%d,\"p95_us\":%d,\"p99_us\":%d,\"max_us\":%d,\"resyncs\":%ld,\"errors\":%ld,\"closed\":%ld,"
           "\"bytes\":%ld}\n",
           rows_total - rows_answered, missing, said_us, first_us, last_us, now_us(), percentile(.5), percentile(.95),
           percentile(.99), percentile(1), resyncs, errors, closed, bytes);
    fflush(stdout);
    rows_answered = rows_total;
    first_us = last_us = bytes = resyncs = errors = latency_count = 0;
    goal = NOTHING;
}

static int reached(void) { return goal == TOTAL ? rows_total >= wanted_total : behind <= 0; }

static void aim(Goal new_goal, long target, int milliseconds) {
    goal = new_goal;
    wanted = target;
    idle_milliseconds = milliseconds;
    behind = 0;
    for (int i = 0; i < client_count; i++) {
        Client *client = &clients[i];
        behind += new_goal == OPEN ? !client->shaken
                  : new_goal == SUBSCRIBED ? client->subscribed < target
                  : new_goal == FINISHED ? client->finished < target
                  : new_goal == EACH ? client->rows < target : 0;
    }
}

static void say(const char *message) {
    char text[4096];
    for (int i = 0; i < client_count; i++) {
        if (clients[i].socket < 0) continue;
        const char *place = strstr(message, "%d");
        int size = place ? snprintf(text, sizeof text, "%.*s%d%s", (int)(place - message), message, i, place + 2)
                         : snprintf(text, sizeof text, "%s", message);
        send_frame(clients[i].socket, 1, text, size);
    }
}

static void obey(char *line) {
    char order[32] = "";
    long count = 0;
    int milliseconds = 0, text_at = 0;
    line[strcspn(line, "\n")] = 0;
    sscanf(line, "%31s", order);
    if (!strcmp(order, "open")) {
        sscanf(line, "%*s %d", &milliseconds);
        open_all();
        aim(OPEN, 1, milliseconds);
    } else if (!strcmp(order, "say")) {
        sscanf(line, "%*s %n", &text_at);
        said_us = now_us();
        say(line + text_at);
        answer();
    } else if (!strcmp(order, "subscribed")) {
        sscanf(line, "%*s %d", &milliseconds);
        aim(SUBSCRIBED, ++wanted_subscribed, milliseconds);
    } else if (!strcmp(order, "finished")) {
        sscanf(line, "%*s %d", &milliseconds);
        aim(FINISHED, ++wanted_finished, milliseconds);
    } else if (!strcmp(order, "each")) {
        sscanf(line, "%*s %ld %d", &count, &milliseconds);
        aim(EACH, wanted_each += count, milliseconds);
    } else if (!strcmp(order, "total")) {
        sscanf(line, "%*s %ld %d", &count, &milliseconds);
        wanted_total += count;
        aim(TOTAL, 0, milliseconds);
    } else if (!strcmp(order, "close")) {
        for (int i = 0; i < client_count; i++) lose(&clients[i]);
        answer();
    } else {
        fprintf(stderr, "load_client: no such order: %s\n", line);
        exit(2);
    }
}

int main(int count, char **arguments) {
    static struct epoll_event events[1024];
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    struct rlimit limit;
    char line[8192];
    if (count != 4) {
        fprintf(stderr, "usage: load_client PORT PATH CLIENTS\n");
        return 2;
    }
    port = atoi(arguments[1]), path = arguments[2], client_count = atoi(arguments[3]);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    clients = calloc(client_count, sizeof *clients);
    for (int i = 0; i < client_count; i++) clients[i].socket = -1;
    latencies = malloc(sizeof *latencies * MAX_LATENCIES);
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    setvbuf(stdin, NULL, _IONBF, 0); /* what is buffered here would not wake epoll */
    long long pong_us = now_us();
    for (;;) {
        int ready = epoll_wait(epoll, events, 1024, goal ? 10 : 1000);
        long long now = now_us();
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) {
                read_client(events[i].data.ptr);
            } else {
                if (!fgets(line, sizeof line, stdin)) return 0;
                heard_us = now;
                obey(line);
            }
        }
        if (goal && (reached() || now_us() - heard_us > idle_milliseconds * 1000LL)) answer();
        if (now - pong_us > PONG_SECONDS * 1000000LL) { /* a sign of life, for servers that want one */
            pong_us = now;
            for (int i = 0; i < client_count; i++)
                if (clients[i].shaken && clients[i].socket >= 0) send_frame(clients[i].socket, 10, "", 0);
        }
    }
}
