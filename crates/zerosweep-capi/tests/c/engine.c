/* Every operation once, with real bytes, and every way that a call can be wrong. */
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "machine.h"

#define SUPERPAGES 8
#define PAGES (SUPERPAGES * ZS_SUPERPAGE_PAGES)
#define EVENT_KINDS (ZS_EVENT_KIND_RETAKE + 1)

/* How often each kind of event came, and the last one of each. */
struct events {
    unsigned count[EVENT_KINDS];
    zs_event last[EVENT_KINDS];
};

static void note_event(void *opaque, const zs_event *event)
{
    struct events *events = opaque;
    CHECK_EQ(event->size, sizeof *event);
    CHECK(event->kind < EVENT_KINDS);
    events->count[event->kind]++;
    events->last[event->kind] = *event;
}

struct guest {
    struct machine machine;
    struct events events;
    zs_domain *domain;
};

static zs_config config_of(struct guest *guest, uint64_t target)
{
    return (zs_config){
        .size = sizeof(zs_config),
        .max_pages = PAGES,
        .target = target,
        .event = note_event,
        .event_opaque = &guest->events,
    };
}

static void guest_create(struct guest *guest, const char *policy, uint64_t target)
{
    *guest = (struct guest){0};
    machine_init(&guest->machine, 2 * PAGES, SUPERPAGES);
    zs_config config = config_of(guest, target);
    config.policy = policy;
    zs_machine functions = machine_functions(&guest->machine);
    OK(zs_domain_create(&config, &functions, &guest->domain));
}

/* All of it promised, and the cache filled. */
static void guest_init(struct guest *guest, const char *policy, uint64_t target)
{
    guest_create(guest, policy, target);
    OK(zs_populate_on_demand(guest->domain, 0, 12));
    OK(zs_set_target(guest->domain, target));
}

static zs_quantities quantities(struct guest *guest)
{
    zs_quantities quantities = {.size = sizeof quantities};
    OK(zs_get_quantities(guest->domain, &quantities));
    return quantities;
}

static zs_entry entry(struct guest *guest, uint64_t gfn)
{
    zs_entry entry = {.size = sizeof entry};
    OK(zs_lookup(guest->domain, gfn, &entry));
    return entry;
}

static void audit(struct guest *guest)
{
    char text[128] = "not written";
    int32_t status = zs_audit(guest->domain, text, sizeof text);
    if (status != ZS_STATUS_OK) {
        fprintf(stderr, "audit: %s\n", text);
        exit(1);
    }
    CHECK_EQ(strlen(text), 0);
    zs_quantities q = quantities(guest);
    CHECK_EQ(q.total, q.populated + q.cache + q.retained);
    CHECK_EQ(q.total, guest->machine.frames_out - guest->machine.retires);
}

/* Every frame goes back. */
static void guest_end(struct guest *guest)
{
    audit(guest);
    int32_t status;
    do {
        status = zs_teardown(guest->domain, 1);
    } while (status == ZS_STATUS_MORE);
    CHECK_EQ(status, ZS_STATUS_OK);
    CHECK_EQ(guest->machine.frames_out, guest->machine.retires);
    CHECK_EQ(zs_fault(guest->domain, 0, NULL), ZS_STATUS_DYING);
    CHECK_EQ(zs_decrease(guest->domain, 0, 0, NULL), ZS_STATUS_DYING);
    CHECK_EQ(zs_populate_on_demand(guest->domain, 0, 0), ZS_STATUS_DYING);
    CHECK_EQ(zs_set_target(guest->domain, 1), ZS_STATUS_DYING);
    uint64_t next = 0;
    CHECK_EQ(zs_sweep(guest->domain, &next, 1), ZS_STATUS_DYING);
    OK(zs_domain_destroy(guest->domain));
    machine_end(&guest->machine);
}

/* As a CPU would: what is not mapped is a fault. */
static void write_word(struct guest *guest, uint64_t gfn, unsigned word, uint64_t value)
{
    while (!guest_try_write(&guest->machine, gfn, word, value)) {
        int32_t status = zs_fault(guest->domain, gfn, NULL);
        CHECK(status == ZS_STATUS_OK || status == ZS_STATUS_MORE);
    }
}

static uint64_t read_word(struct guest *guest, uint64_t gfn, unsigned word)
{
    uint64_t value;
    while (!guest_try_read(&guest->machine, gfn, word, &value)) {
        int32_t status = zs_fault(guest->domain, gfn, NULL);
        CHECK(status == ZS_STATUS_OK || status == ZS_STATUS_MORE);
    }
    return value;
}

static void a_life(void)
{
    struct guest guest;
    guest_init(&guest, NULL, 2048);
    zs_quantities q = quantities(&guest);
    CHECK_EQ(q.max, PAGES);
    CHECK_EQ(q.target, 2048);
    CHECK_EQ(q.entries, PAGES);
    CHECK_EQ(q.cache, 2048);
    CHECK_EQ(q.cached_superpages, 4);
    CHECK_EQ(q.debt, 2048);
    CHECK_EQ(q.certain, 2048);

    /* A touch brings a superpage, which reads as zero although the host gave out rubbish. */
    zs_range range;
    OK(zs_fault(guest.domain, 700, &range));
    CHECK_EQ(range.gfn, 512);
    CHECK_EQ(range.order, 9);
    CHECK_EQ(guest.events.count[ZS_EVENT_KIND_POPULATE], 1);
    CHECK_EQ(guest.events.last[ZS_EVENT_KIND_POPULATE].gfn, 512);
    CHECK_EQ(guest.events.last[ZS_EVENT_KIND_POPULATE].fault, 700);
    CHECK_EQ(guest.events.last[ZS_EVENT_KIND_POPULATE].order, 9);
    CHECK_EQ(quantities(&guest).populated, 512);
    CHECK_EQ(entry(&guest, 700).kind, ZS_ENTRY_KIND_RAM);
    CHECK_EQ(entry(&guest, 700).mfn, entry(&guest, 512).mfn + 188);
    CHECK_EQ(read_word(&guest, 700, 511), 0);
    write_word(&guest, 700, 511, 0x700);

    /* Given back: a promised page, a populated one, and both again. */
    uint64_t given = 77;
    OK(zs_decrease(guest.domain, 3, 0, &given));
    CHECK_EQ(given, 1);
    OK(zs_decrease(guest.domain, 701, 0, &given));
    CHECK_EQ(given, 1);
    OK(zs_decrease(guest.domain, 701, 0, &given));
    CHECK_EQ(given, 0);
    CHECK_EQ(entry(&guest, 701).kind, ZS_ENTRY_KIND_INVALID);
    CHECK_EQ(quantities(&guest).guest, PAGES - 2);
    CHECK_EQ(zs_fault(guest.domain, 701, NULL), ZS_STATUS_UNMAPPED);
    CHECK_EQ(read_word(&guest, 700, 511), 0x700);
    audit(&guest);

    /* A scrubbed superpage is found by a sweep, one with a byte in it is not. */
    for (uint64_t gfn = 1024; gfn < 2048; gfn++) {
        write_word(&guest, gfn, 0, 0);
    }
    write_word(&guest, 1777, 300, 1);
    CHECK_EQ(entry(&guest, 1024).kind, ZS_ENTRY_KIND_RAM);
    unsigned reclaims = guest.events.count[ZS_EVENT_KIND_RECLAIM];
    uint64_t next = 0;
    unsigned steps = 0;
    while (zs_sweep(guest.domain, &next, 1) == ZS_STATUS_MORE) {
        steps++;
    }
    CHECK_EQ(steps, SUPERPAGES - 1);
    CHECK_EQ(next, SUPERPAGES);
    CHECK(guest.events.count[ZS_EVENT_KIND_RECLAIM] > reclaims);
    CHECK_EQ(guest.events.count[ZS_EVENT_KIND_SWEEP], SUPERPAGES);
    CHECK_EQ(entry(&guest, 1024).kind, ZS_ENTRY_KIND_POD);
    CHECK_EQ(entry(&guest, 1777).kind, ZS_ENTRY_KIND_RAM);
    CHECK_EQ(read_word(&guest, 1777, 300), 1);
    CHECK_EQ(read_word(&guest, 700, 511), 0x700);
    audit(&guest);

    /* Content that is given up reads as zero, and the pages stay the guest's. */
    uint64_t before = quantities(&guest).guest, discarded;
    OK(zs_discard(guest.domain, 1536, 512, &discarded));
    CHECK_EQ(discarded, 1); /* The sweep had the other 511. */
    CHECK_EQ(quantities(&guest).guest, before);
    CHECK_EQ(read_word(&guest, 1777, 300), 0);

    zs_statistics statistics = {.size = sizeof statistics};
    OK(zs_get_statistics(guest.domain, &statistics));
    CHECK_EQ(statistics.pages_given_back, 2);
    CHECK(statistics.populates_2m >= 3);
    CHECK(statistics.superpages_reclaimed >= 1);
    CHECK_EQ(statistics.peak_total, 2048);
    CHECK(guest.machine.flushes > 0);
    guest_end(&guest);
}

static void any_alignment_and_every_kind_of_range(void)
{
    struct guest guest;
    guest_create(&guest, "zerosweep", 2048);
    OK(zs_populate_on_demand(guest.domain, 3, 2));
    CHECK_EQ(quantities(&guest).entries, 4);
    OK(zs_populate_on_demand(guest.domain, 5, 2));
    CHECK_EQ(quantities(&guest).entries, 6);
    OK(zs_set_target(guest.domain, 2048));
    CHECK_EQ(quantities(&guest).cache, 6);

    OK(zs_set_special(guest.domain, 1000, 3));
    CHECK_EQ(entry(&guest, 1007).kind, ZS_ENTRY_KIND_SPECIAL);
    CHECK_EQ(zs_fault(guest.domain, 1003, NULL), ZS_STATUS_SPECIAL);
    CHECK_EQ(zs_populate_on_demand(guest.domain, 999, 1), ZS_STATUS_BUSY);
    CHECK_EQ(entry(&guest, 999).kind, ZS_ENTRY_KIND_INVALID);

    OK(zs_populate_physmap(guest.domain, 100, 4));
    CHECK_EQ(quantities(&guest).populated, 16);
    CHECK_EQ(zs_populate_physmap(guest.domain, 2048, 11), ZS_STATUS_OVER_TARGET);
    CHECK_EQ(zs_set_special(guest.domain, 100, 0), ZS_STATUS_BUSY);

    OK(zs_pin(guest.domain, 100));
    CHECK_EQ(entry(&guest, 100).is_pinned, 1);
    uint64_t given;
    OK(zs_decrease(guest.domain, 100, 1, &given));
    CHECK_EQ(given, 1);
    OK(zs_unpin(guest.domain, 100));
    OK(zs_decrease(guest.domain, 100, 0, &given));
    CHECK_EQ(given, 1);
    CHECK_EQ(zs_pin(guest.domain, 100), ZS_STATUS_NO_FRAME);

    /* A frame of the cache is broken: it is replaced, and not given back at the end. */
    uint64_t mfn = 0;
    while (zs_offline(guest.domain, mfn) == ZS_STATUS_NOT_CACHED) {
        mfn++;
        CHECK(mfn < guest.machine.frames);
    }
    CHECK_EQ(guest.machine.retires, 1);
    CHECK_EQ(zs_offline(guest.domain, UINT64_MAX), ZS_STATUS_NOT_CACHED);
    guest_end(&guest);
}

/* Single pages that lie about come together. */
static void consolidate_and_upkeep(void)
{
    struct guest guest;
    guest_create(&guest, "zerosweep", 2048);
    guest.machine.maps_pieces = true;
    OK(zs_populate_on_demand(guest.domain, 0, 11));
    OK(zs_set_target(guest.domain, 2048));
    for (uint64_t gfn = 0; gfn < 2048; gfn++) {
        write_word(&guest, gfn, 7, gfn + 1);
    }
    for (uint64_t gfn = 0; gfn < 2048; gfn++) {
        if (gfn % 8 != 0) {
            OK(zs_decrease(guest.domain, gfn, 0, NULL));
        }
    }
    guest.machine.maps_pieces = false;
    CHECK_EQ(quantities(&guest).populated, 256);
    OK(zs_begin_target(guest.domain, 256));
    while (zs_shrink(guest.domain, 1) == ZS_STATUS_MORE) {
    }
    while (zs_fill(guest.domain, 1) == ZS_STATUS_MORE) {
    }
    uint64_t moved = 0;
    uint32_t anew = 1;
    while (zs_consolidate(guest.domain, anew, 1, &moved) == ZS_STATUS_MORE) {
        anew = 0;
    }
    CHECK(moved > 0);
    while (zs_upkeep(guest.domain, 1, 1) == ZS_STATUS_MORE) {
    }
    OK(zs_wants_upkeep(guest.domain, 1));
    zs_quantities q = quantities(&guest);
    CHECK_EQ(q.populated, 256);
    CHECK_EQ(q.total, 256);
    for (uint64_t gfn = 0; gfn < 2048; gfn += 8) {
        CHECK_EQ(read_word(&guest, gfn, 7), gfn + 1);
        CHECK_EQ(entry(&guest, gfn).mfn / 512, entry(&guest, 0).mfn / 512);
    }
    guest_end(&guest);
}

static void what_the_machine_cannot_do(void)
{
    struct guest guest;
    guest_create(&guest, "zerosweep", 1024);
    OK(zs_populate_on_demand(guest.domain, 0, 11));
    guest.machine.fail_allocations = 1000;
    CHECK_EQ(zs_set_target(guest.domain, 1024), ZS_STATUS_OUT_OF_FRAMES);
    CHECK_EQ(quantities(&guest).cache, 0);
    CHECK_EQ(zs_fault(guest.domain, 0, NULL), ZS_STATUS_EXHAUSTED);
    CHECK_EQ(zs_fault_borrowing(guest.domain, 0, NULL), ZS_STATUS_EXHAUSTED);
    CHECK_EQ(guest.events.count[ZS_EVENT_KIND_EXHAUSTED], 2);
    CHECK_EQ(zs_populate_physmap(guest.domain, 3000, 0), ZS_STATUS_OUT_OF_FRAMES);
    audit(&guest);
    guest.machine.fail_allocations = 0;
    OK(zs_fill(guest.domain, 1000));
    CHECK_EQ(quantities(&guest).cache, 1024);

    guest.machine.fail_maps = 1;
    CHECK_EQ(zs_fault(guest.domain, 600, NULL), ZS_STATUS_MAP_FAILED);
    CHECK_EQ(quantities(&guest).populated, 0);
    audit(&guest);
    OK(zs_fault(guest.domain, 600, NULL));

    /* A frame that a device uses stays where it is, and its page the guest's. */
    write_word(&guest, 5, 0, 55);
    guest.machine.busy = entry(&guest, 5).mfn;
    uint64_t given;
    OK(zs_decrease(guest.domain, 0, 9, &given));
    CHECK_EQ(read_word(&guest, 5, 0), 55);
    CHECK_EQ(zs_teardown(guest.domain, SUPERPAGES), ZS_STATUS_MORE);
    CHECK(guest.machine.frames_out > 0);
    guest.machine.busy = NOWHERE;
    guest_end(&guest);
}

static void exhausted(void)
{
    struct guest guest;
    guest_init(&guest, "zerosweep", 512);
    for (uint64_t gfn = 0; gfn < 512; gfn++) {
        write_word(&guest, gfn, 1, gfn + 1);
    }
    CHECK_EQ(zs_fault(guest.domain, 512, NULL), ZS_STATUS_EXHAUSTED);
    CHECK_EQ(zs_fault_wait(guest.domain, 512, 1, NULL), ZS_STATUS_EXHAUSTED);
    OK(zs_fault_borrowing(guest.domain, 512, NULL));
    CHECK_EQ(quantities(&guest).borrowed, 1);
    CHECK_EQ(quantities(&guest).total, 513);
    CHECK_EQ(quantities(&guest).missing, PAGES - 513);
    OK(zs_set_target(guest.domain, 1024));
    CHECK_EQ(quantities(&guest).borrowed, 0);
    OK(zs_fault_wait(guest.domain, 1024, UINT64_MAX, NULL));

    /* Zeros that nothing reported. */
    OK(zs_set_target(guest.domain, 513));
    for (uint64_t gfn = 0; gfn < 512; gfn++) {
        write_word(&guest, gfn, 1, 0);
    }
    OK(zs_allow_sweep(guest.domain));
    int32_t status;
    do {
        status = zs_fault(guest.domain, 3000, NULL);
    } while (status == ZS_STATUS_MORE);
    OK(status);
    CHECK_EQ(read_word(&guest, 3000, 0), 0);
    guest_end(&guest);
}

/* A guest that uses its pages again without saying so. */
static void taken_again(void)
{
    struct guest guest;
    guest_create(&guest, "zerosweep", PAGES);
    OK(zs_teardown(guest.domain, SUPERPAGES));
    OK(zs_domain_destroy(guest.domain));
    zs_config config = config_of(&guest, PAGES);
    config.invalid_touch = ZS_INVALID_TOUCH_INCREASE;
    config.machine_calls = ZS_MACHINE_CALLS_SERIAL;
    config.upkeep_by = ZS_UPKEEP_BY_CALLER;
    config.expect_frames = guest.machine.frames;
    config.fault_budget_bytes = 1 << 16;
    zs_machine functions = machine_functions(&guest.machine);
    OK(zs_domain_create(&config, &functions, &guest.domain));
    OK(zs_populate_on_demand(guest.domain, 0, 12));
    OK(zs_set_target(guest.domain, 2048));
    write_word(&guest, 9, 3, 99);
    write_word(&guest, 10, 3, 100);
    OK(zs_decrease(guest.domain, 9, 0, NULL));
    OK(zs_decrease(guest.domain, 11, 0, NULL));
    CHECK_EQ(quantities(&guest).retained, 2);
    uint64_t retaken;
    OK(zs_retake(guest.domain, 11, 1, &retaken));
    CHECK_EQ(retaken, 1);
    CHECK_EQ(guest.events.count[ZS_EVENT_KIND_RETAKE], 1);
    CHECK_EQ(guest.events.last[ZS_EVENT_KIND_RETAKE].gfn, 11);
    OK(zs_fault(guest.domain, 9, NULL));
    CHECK_EQ(quantities(&guest).retained, 0);
    CHECK_EQ(quantities(&guest).guest, PAGES);
    CHECK_EQ(read_word(&guest, 9, 3), 0);
    CHECK_EQ(read_word(&guest, 10, 3), 100);
    CHECK_EQ(guest.machine.most_inside, 1);
    guest_end(&guest);
}

static void every_policy(void)
{
    static const char *const names[] = {
        "none",     "hypercall-2011", "rfc-2011:gate=debt", "rfc-2011:gate=always",
        "xen-2012", "xen-2016",       "zerosweep",          "rfc-2011",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct guest guest;
        guest_init(&guest, names[i], 2048);
        for (uint64_t gfn = 0; gfn < 1024; gfn++) {
            write_word(&guest, gfn, 2, gfn % 3);
        }
        for (uint64_t gfn = 0; gfn < 1024; gfn += 2) {
            OK(zs_decrease(guest.domain, gfn, 0, NULL));
        }
        for (uint64_t gfn = 1; gfn < 1024; gfn += 2) {
            CHECK_EQ(read_word(&guest, gfn, 2), gfn % 3);
        }
        guest_end(&guest);
    }
}

/* A structure of a later version: ours, and more. */
struct later_config {
    zs_config config;
    uint64_t more;
};

static void what_cannot_be_created(void)
{
    struct guest guest = {0};
    machine_init(&guest.machine, 512, SUPERPAGES);
    zs_machine functions = machine_functions(&guest.machine);
    const zs_config good = config_of(&guest, 1024);
    zs_config config = good;
    zs_domain *domain = NULL;
    CHECK_EQ(zs_domain_create(NULL, &functions, &domain), ZS_STATUS_NULL);
    CHECK_EQ(zs_domain_create(&config, NULL, &domain), ZS_STATUS_NULL);
    CHECK_EQ(zs_domain_create(&config, &functions, NULL), ZS_STATUS_NULL);

#define REFUSED(status, change)                                                     \
    do {                                                                            \
        config = good;                                                              \
        config.change;                                                              \
        CHECK_EQ(zs_domain_create(&config, &functions, &domain), status);           \
    } while (0)
    REFUSED(ZS_STATUS_SIZE, size = 0);
    REFUSED(ZS_STATUS_SIZE, size = sizeof good - 1);
    REFUSED(ZS_STATUS_MAX_PAGES, max_pages = 0);
    REFUSED(ZS_STATUS_MAX_PAGES, max_pages = UINT64_MAX);
    REFUSED(ZS_STATUS_TARGET, target = 0);
    REFUSED(ZS_STATUS_TARGET, target = PAGES + 1);
    REFUSED(ZS_STATUS_POLICY, policy = "zerosweep ");
    REFUSED(ZS_STATUS_POLICY, policy = "\xff");
    REFUSED(ZS_STATUS_VALUE, invalid_touch = 2);
    REFUSED(ZS_STATUS_VALUE, upkeep_by = 2);
    REFUSED(ZS_STATUS_VALUE, machine_calls = 2);
    REFUSED(ZS_STATUS_VALUE, reserved = 1);
    REFUSED(ZS_STATUS_VALUE, expect_frames = UINT64_MAX);

#define INCOMPLETE(function)                                                        \
    do {                                                                            \
        zs_machine lacking = functions;                                             \
        lacking.function = NULL;                                                    \
        CHECK_EQ(zs_domain_create(&good_, &lacking, &domain), ZS_STATUS_MACHINE);   \
    } while (0)
    zs_config good_ = good;
    INCOMPLETE(allocate);
    INCOMPLETE(free);
    INCOMPLETE(map);
    INCOMPLETE(unmap);
    INCOMPLETE(flush);
    INCOMPLETE(quick_check);
    INCOMPLETE(peek);
    INCOMPLETE(zero_check);
    INCOMPLETE(clear);
    INCOMPLETE(copy);
    INCOMPLETE(scrub);
    CHECK(domain == NULL);

    struct later_config later = {.config = good, .more = 1};
    later.config.size = sizeof later;
    CHECK_EQ(zs_domain_create(&later.config, &functions, &domain), ZS_STATUS_UNSUPPORTED);
    later.more = 0;
    functions.allocate_in = NULL;
    functions.park = NULL;
    functions.retire = NULL;
    OK(zs_domain_create(&later.config, &functions, &domain));
    OK(zs_domain_destroy(domain));
    OK(zs_domain_destroy(NULL));
    machine_end(&guest.machine);
}

static void calls_that_are_wrong(void)
{
    struct guest guest;
    guest_init(&guest, NULL, 1024);
    zs_domain *domain = guest.domain;
    uint64_t next = 0;
    zs_quantities q = {.size = sizeof q};
    zs_statistics statistics = {.size = sizeof statistics};
    zs_entry found = {.size = sizeof found};

    CHECK_EQ(zs_populate_on_demand(NULL, 0, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_set_special(NULL, 0, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_populate_physmap(NULL, 0, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_pin(NULL, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_unpin(NULL, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_set_target(NULL, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_begin_target(NULL, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_shrink(NULL, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_fill(NULL, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_fault(NULL, 0, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_fault_borrowing(NULL, 0, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_fault_wait(NULL, 0, 1, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_decrease(NULL, 0, 0, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_discard(NULL, 0, 1, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_retake(NULL, 0, 1, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_sweep(NULL, &next, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_sweep(domain, NULL, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_allow_sweep(NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_wants_upkeep(NULL, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_upkeep(NULL, 1, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_consolidate(NULL, 1, 1, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_offline(NULL, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_audit(NULL, NULL, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_get_quantities(NULL, &q), ZS_STATUS_NULL);
    CHECK_EQ(zs_get_quantities(domain, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_get_statistics(NULL, &statistics), ZS_STATUS_NULL);
    CHECK_EQ(zs_get_statistics(domain, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_lookup(NULL, 0, &found), ZS_STATUS_NULL);
    CHECK_EQ(zs_lookup(domain, 0, NULL), ZS_STATUS_NULL);
    CHECK_EQ(zs_teardown(NULL, 1), ZS_STATUS_NULL);
    CHECK_EQ(zs_failure(NULL, NULL, 0), ZS_STATUS_NULL);
    CHECK_EQ(zs_first_nonzero(NULL, 1), ZS_ALL_ZERO);

    CHECK_EQ(zs_populate_on_demand(domain, 0, 19), ZS_STATUS_ORDER);
    CHECK_EQ(zs_decrease(domain, 0, 256, NULL), ZS_STATUS_ORDER);
    CHECK_EQ(zs_set_special(domain, 0, UINT32_MAX), ZS_STATUS_ORDER);
    CHECK_EQ(zs_populate_on_demand(domain, 1, 12), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_populate_on_demand(domain, UINT64_MAX, 0), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_decrease(domain, PAGES, 0, NULL), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_decrease(domain, UINT64_MAX, 9, NULL), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_discard(domain, 1, PAGES, NULL), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_discard(domain, 1, UINT64_MAX, NULL), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_pin(domain, PAGES), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_lookup(domain, PAGES, &found), ZS_STATUS_OUT_OF_RANGE);
    CHECK_EQ(zs_fault(domain, UINT64_MAX, NULL), ZS_STATUS_UNMAPPED);
    CHECK_EQ(zs_set_target(domain, 0), ZS_STATUS_TARGET);
    CHECK_EQ(zs_set_target(domain, PAGES + 1), ZS_STATUS_TARGET);
    OK(zs_retake(domain, UINT64_MAX, UINT64_MAX, NULL));
    next = UINT64_MAX;
    OK(zs_sweep(domain, &next, UINT64_MAX));

    /* Only as much is written as there is room for, and what the library has not is zero. */
    q.size = 0;
    CHECK_EQ(zs_get_quantities(domain, &q), ZS_STATUS_SIZE);
    struct {
        zs_quantities q;
        uint64_t more, behind;
    } later = {.q.size = sizeof later.q + sizeof later.more, .more = 7, .behind = 7};
    OK(zs_get_quantities(domain, &later.q));
    CHECK_EQ(later.q.entries, PAGES);
    CHECK_EQ(later.q.size, sizeof later.q + sizeof later.more);
    CHECK_EQ(later.more, 0);
    CHECK_EQ(later.behind, 7);

    OK(zs_failure(domain, NULL, 0));
    audit(&guest);
    guest_end(&guest);
}

struct caller {
    zs_domain *domain;
    int32_t status;
};

static bool call_from_within(void *opaque, uint64_t mfn, uint32_t *answer)
{
    struct caller *caller = opaque;
    (void)mfn, (void)answer;
    caller->status = zs_fault(caller->domain, 0, NULL);
    CHECK_EQ(zs_domain_destroy(caller->domain), ZS_STATUS_REENTRANT);
    return false;
}

static void calls_from_within_the_machine_are_refused(void)
{
    struct guest guest;
    guest_init(&guest, NULL, 1024);
    OK(zs_fault(guest.domain, 0, NULL));
    struct caller caller = {.domain = guest.domain};
    guest.machine.before_zero_check = call_from_within;
    guest.machine.before_opaque = &caller;
    uint64_t next = 0;
    CHECK_EQ(zs_sweep(guest.domain, &next, 1), ZS_STATUS_MORE);
    CHECK_EQ(caller.status, ZS_STATUS_REENTRANT);
    CHECK_EQ(entry(&guest, 0).kind, ZS_ENTRY_KIND_POD);
    guest.machine.before_zero_check = NULL;
    guest_end(&guest);
}

static int32_t allocate_askew(void *opaque, uint32_t order, uint64_t *mfn, uint32_t *content)
{
    (void)opaque, (void)order, (void)content;
    *mfn = 1;
    return 0;
}

static void an_answer_that_cannot_be_breaks_the_domain(void)
{
    struct guest guest = {0};
    machine_init(&guest.machine, 512, SUPERPAGES);
    zs_machine functions = machine_functions(&guest.machine);
    functions.allocate = allocate_askew;
    zs_config config = config_of(&guest, 1024);
    OK(zs_domain_create(&config, &functions, &guest.domain));
    OK(zs_populate_on_demand(guest.domain, 0, 12));
    CHECK_EQ(zs_set_target(guest.domain, 1024), ZS_STATUS_BROKEN);
    CHECK_EQ(zs_fault(guest.domain, 0, NULL), ZS_STATUS_BROKEN);
    CHECK_EQ(zs_teardown(guest.domain, 1), ZS_STATUS_BROKEN);
    zs_quantities q = {.size = sizeof q};
    CHECK_EQ(zs_get_quantities(guest.domain, &q), ZS_STATUS_BROKEN);
    char text[256], some[11];
    CHECK_EQ(zs_failure(guest.domain, text, sizeof text), ZS_STATUS_BROKEN);
    CHECK(strstr(text, "zs_machine.allocate gave frame 0x1"));
    CHECK_EQ(zs_failure(guest.domain, some, sizeof some), ZS_STATUS_BROKEN);
    CHECK(strcmp(some, "zs_machine") == 0);
    OK(zs_domain_destroy(guest.domain));
    machine_end(&guest.machine);
}

static void texts(void)
{
    CHECK_EQ(zs_abi_version(), ZS_ABI_VERSION);
    CHECK(strlen(zs_version()) >= 5);
    CHECK(strcmp(zs_error_message(ZS_STATUS_OK), "done") == 0);
    CHECK(strstr(zs_error_message(ZS_STATUS_POLICY), "xen-2016"));
    CHECK(strcmp(zs_error_message(INT32_MIN), "not a zs_status") == 0);
}

static void the_scan(void)
{
    static uint64_t words[ZS_SUPERPAGE_PAGES * PAGE_WORDS];
    size_t count = sizeof words / sizeof *words;
    CHECK_EQ(zs_first_nonzero(words, count), ZS_ALL_ZERO);
    words[count - 1] = 1;
    CHECK_EQ(zs_first_nonzero(words, count), count - 1);
    CHECK_EQ(zs_first_nonzero(words, count - 1), ZS_ALL_ZERO);
    words[77] = UINT64_C(1) << 63;
    CHECK_EQ(zs_first_nonzero(words, count), 77);
    CHECK_EQ(zs_first_nonzero(words, 0), ZS_ALL_ZERO);
}

int main(void)
{
    alarm(300); /* A thread that waits for ever is a failure. */
    a_life();
    any_alignment_and_every_kind_of_range();
    consolidate_and_upkeep();
    what_the_machine_cannot_do();
    exhausted();
    taken_again();
    every_policy();
    what_cannot_be_created();
    calls_that_are_wrong();
    calls_from_within_the_machine_are_refused();
    an_answer_that_cannot_be_breaks_the_domain();
    texts();
    the_scan();
    puts("engine: all passed");
    return 0;
}
