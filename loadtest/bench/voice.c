/* The schedule is one line: packet k of the whole run belongs to call k % calls, is its number k / calls, and is due at
 * start + k / (calls * pps). So the phases are spread, no call drifts, and a late generator does not slow the clock
 * down: it is late, and that is measured. */
#include "voice.h"

#include <stdlib.h>

#include "clock.h"
#include "stamp.h"

/* The run that on_data counts for: there is one. */
static struct voice *running;

bool voice_prepare(struct voice *voice, struct voice_settings settings)
{
    voice->settings = settings;
    voice->run_key = now_ns();
    voice->calls = calloc(settings.calls, sizeof *voice->calls);
    if (!voice->calls)
        return false;
    for (uint32_t i = 0; i < settings.calls; i++) {
        voice->calls[i].heard = calloc(settings.end / 8 + 1, 1);
        if (!voice->calls[i].heard)
            return false;
    }
    running = voice;
    return true;
}

static uint64_t due_ns(const struct voice *voice, uint64_t tick)
{
    return voice->start_ns + tick * NS_PER_S / ((uint64_t)voice->settings.calls * voice->settings.pps);
}

uint64_t voice_due_ns(const struct voice *voice, uint32_t sequence)
{
    return due_ns(voice, (uint64_t)sequence * voice->settings.calls);
}

bool voice_all_sent(const struct voice *voice)
{
    return voice->tick >= (uint64_t)voice->settings.calls * voice->settings.end;
}

bool voice_all_received(const struct voice *voice)
{
    return voice->result.received + voice->result.unsent >= voice->result.due;
}

static void send_one(struct voice *voice, uint64_t due)
{
    uint8_t payload[MAX_PAYLOAD_BYTES];
    const struct voice_settings *settings = &voice->settings;
    struct call *call = &voice->calls[voice->tick % settings->calls];
    /* The stamp is taken before the packet may have to wait for room: that wait is the server's doing. */
    struct stamp stamp = {call->client.number, (uint32_t)(voice->tick / settings->calls), now_ns()};
    build_payload(payload, settings->payload_bytes, stamp, voice->run_key);
    bool sent = client_send_data(&call->client, payload, settings->payload_bytes);
    if (stamp.sequence < settings->first_counted)
        return;
    voice->result.due++;
    voice->result.unsent += !sent;
    voice->result.frames += sent;
    record_us(&voice->result.late, (stamp.sent_ns - due) / NS_PER_US);
}

bool voice_send_due(struct voice *voice, uint64_t now, uint32_t limit)
{
    for (; limit && !voice_all_sent(voice); limit--, voice->tick++) {
        uint64_t due = due_ns(voice, voice->tick);
        if (due > now)
            return false;
        send_one(voice, due);
    }
    return !limit;
}

/* True if the packet was heard before. */
static bool mark_heard(struct call *call, uint32_t sequence)
{
    uint8_t *byte = &call->heard[sequence / 8], bit = (uint8_t)(1u << sequence % 8);
    bool before = *byte & bit;
    *byte |= bit;
    return before;
}

static void count_once(struct voice *voice, struct call *call, struct stamp stamp, uint64_t now)
{
    if (stamp.sequence < call->next)
        voice->result.reordered++;
    else
        call->next = stamp.sequence + 1;
    if (stamp.sequence < voice->settings.first_counted)
        return;
    voice->result.received++;
    voice->result.frames += now < voice_due_ns(voice, voice->settings.end);
    record_us(&voice->result.rtt, (now - stamp.sent_ns) / NS_PER_US);
}

void voice_on_data(struct client *client, const uint8_t *payload, size_t size)
{
    struct voice *voice = running;
    struct call *call = (struct call *)client;
    struct stamp stamp;
    if (!parse_payload(payload, size, voice->settings.payload_bytes, voice->run_key, &stamp))
        voice->result.corrupt++;
    else if (stamp.connection != client->number)
        voice->result.misrouted++;
    else if (mark_heard(call, stamp.sequence))
        voice->result.duplicate++;
    else
        count_once(voice, call, stamp, now_ns());
}
