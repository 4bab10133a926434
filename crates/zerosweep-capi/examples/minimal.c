/*
 * A guest of 16 MiB that may hold 8, on memory of this process: the smallest machine that is whole.
 *
 *     cargo build --release -p zerosweep-capi
 *     cc -std=c11 -I crates/zerosweep-capi/include crates/zerosweep-capi/examples/minimal.c \
 *         target/release/libzerosweep_capi.a -pthread -ldl -lm -o minimal
 *     ./minimal
 *
 * Frames are pages of one array, and the guest's page table is another. One thread uses it, and
 * ZS_MACHINE_CALLS_SERIAL would do for more; a VMM maps frames into its guest in map and unmap, and
 * waits for its CPUs in flush.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "zerosweep.h"

enum { SUPERPAGES = 8, PAGES = SUPERPAGES * ZS_SUPERPAGE_PAGES, WORDS = ZS_PAGE_BYTES / 8 };

struct machine {
    uint64_t (*frames)[WORDS];
    bool is_out[PAGES];
    uint64_t *table[PAGES]; /* Where the guest's pages are; NULL: not mapped. */
};

static int32_t machine_allocate(void *opaque, uint32_t order, uint64_t *mfn, uint32_t *content)
{
    struct machine *machine = opaque;
    uint64_t pages = UINT64_C(1) << order;
    for (uint64_t at = 0; at < PAGES; at += pages) {
        if (!memchr(machine->is_out + at, true, pages)) {
            memset(machine->is_out + at, true, pages);
            *mfn = at;
            *content = ZS_CONTENT_UNKNOWN;
            return 0;
        }
    }
    return 1;
}

static void machine_free(void *opaque, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    memset(machine->is_out + mfn, false, UINT64_C(1) << order);
}

static uint32_t machine_map(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    for (uint64_t i = 0; i < UINT64_C(1) << order; i++) {
        machine->table[gfn + i] = machine->frames[mfn + i];
    }
    return ZS_MAPPED_WHOLE;
}

static uint32_t machine_unmap(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    (void)mfn;
    for (uint64_t i = 0; i < UINT64_C(1) << order; i++) {
        machine->table[gfn + i] = NULL;
    }
    return ZS_UNMAPPED_DONE;
}

static void machine_flush(void *opaque)
{
    (void)opaque; /* The only CPU is this one. */
}

static uint32_t machine_quick_check(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    (void)gfn;
    for (uint32_t page = 0; page < UINT32_C(1) << order; page++) {
        uint32_t word = zs_first_nonzero(machine->frames[mfn + page], 16);
        if (word != ZS_ALL_ZERO) {
            return page * WORDS + word;
        }
    }
    return ZS_ALL_ZERO;
}

static uint64_t machine_peek(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t word)
{
    struct machine *machine = opaque;
    (void)gfn;
    return machine->frames[mfn + word / WORDS][word % WORDS];
}

static uint32_t machine_zero_check(void *opaque, uint64_t mfn, uint64_t pages)
{
    struct machine *machine = opaque;
    return zs_first_nonzero(machine->frames[mfn], pages * WORDS);
}

static void machine_clear(void *opaque, uint64_t mfn, uint32_t order)
{
    struct machine *machine = opaque;
    memset(machine->frames[mfn], 0, (size_t)ZS_PAGE_BYTES << order);
}

static void machine_copy(void *opaque, uint64_t from, uint64_t to)
{
    struct machine *machine = opaque;
    memcpy(machine->frames[to], machine->frames[from], ZS_PAGE_BYTES);
}

static uint32_t machine_scrub(void *opaque, uint64_t gfn, uint64_t mfn)
{
    struct machine *machine = opaque;
    (void)gfn;
    if (zs_first_nonzero(machine->frames[mfn], WORDS) == ZS_ALL_ZERO) {
        return ZS_CONTENT_ZERO;
    }
    memset(machine->frames[mfn], 0, ZS_PAGE_BYTES);
    return ZS_CONTENT_UNKNOWN;
}

static void done(int32_t status)
{
    if (status != ZS_STATUS_OK) {
        fprintf(stderr, "minimal: %s\n", zs_error_message(status));
        exit(1);
    }
}

/* The guest's CPU: what is not mapped is a fault. */
static uint64_t *touch(zs_domain *domain, struct machine *machine, uint64_t gfn)
{
    while (!machine->table[gfn]) {
        int32_t status = zs_fault(domain, gfn, NULL);
        if (status != ZS_STATUS_MORE) {
            done(status);
        }
    }
    return machine->table[gfn];
}

static void show(zs_domain *domain, const char *what)
{
    zs_quantities q = {.size = sizeof q};
    done(zs_get_quantities(domain, &q));
    printf("%-24s holds %4" PRIu64 " of %" PRIu64 " pages; populated %4" PRIu64 ", promised %4"
           PRIu64 ", in the cache %4" PRIu64 "\n",
           what, q.total, q.target, q.populated, q.entries, q.cache);
}

int main(void)
{
    static struct machine machine;
    machine.frames = aligned_alloc(64, PAGES * ZS_PAGE_BYTES);
    if (!machine.frames) {
        return 1;
    }
    const zs_machine functions = {
        .size = sizeof functions,
        .opaque = &machine,
        .allocate = machine_allocate,
        .free = machine_free,
        .map = machine_map,
        .unmap = machine_unmap,
        .flush = machine_flush,
        .quick_check = machine_quick_check,
        .peek = machine_peek,
        .zero_check = machine_zero_check,
        .clear = machine_clear,
        .copy = machine_copy,
        .scrub = machine_scrub,
    };
    const zs_config config = {.size = sizeof config, .max_pages = PAGES, .target = PAGES / 2};
    zs_domain *domain;
    done(zs_domain_create(&config, &functions, &domain));

    /* All of it is promised, and half of it is there. */
    done(zs_populate_on_demand(domain, 0, 12));
    done(zs_set_target(domain, PAGES / 2));
    show(domain, "started:");

    /* The guest scrubs all of its memory, twice what it may hold, and uses a little. */
    for (uint64_t gfn = 0; gfn < PAGES; gfn++) {
        memset(touch(domain, &machine, gfn), 0, ZS_PAGE_BYTES);
        if (gfn < 100) {
            touch(domain, &machine, gfn)[0] = gfn + 1;
        }
    }
    show(domain, "scrubbed:");

    /* Its balloon gives the upper half back. */
    uint64_t given = 0;
    for (uint64_t gfn = PAGES / 2; gfn < PAGES; gfn++) {
        uint64_t one;
        done(zs_decrease(domain, gfn, 0, &one));
        given += one;
    }
    printf("given back: %" PRIu64 " pages\n", given);
    show(domain, "ballooned:");

    for (uint64_t gfn = 0; gfn < 100; gfn++) {
        if (touch(domain, &machine, gfn)[0] != gfn + 1) {
            fprintf(stderr, "minimal: page %" PRIu64 " is lost\n", gfn);
            return 1;
        }
    }
    char difference[128];
    if (zs_audit(domain, difference, sizeof difference) != ZS_STATUS_OK) {
        fprintf(stderr, "minimal: audit: %s\n", difference);
        return 1;
    }

    int32_t status;
    do {
        status = zs_teardown(domain, 64);
    } while (status == ZS_STATUS_MORE);
    done(status);
    done(zs_domain_destroy(domain));
    free(machine.frames);
    return 0;
}
