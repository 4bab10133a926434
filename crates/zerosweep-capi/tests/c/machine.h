/*
 * A machine for tests: frames are pages of one mapping, and the guest's view is a table. It checks
 * every request against what it knows.
 *
 * A superpage's part of the table has a lock: a guest's access holds it for reading, a change for
 * writing. So nothing is reached any more once unmap has returned, and flush has nothing to do.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "zerosweep.h"

#define PAGE_WORDS (ZS_PAGE_BYTES / 8)
#define NOWHERE UINT64_MAX

struct superpage {
    pthread_rwlock_t lock;
    uint64_t mfn[ZS_SUPERPAGE_PAGES];
};

struct machine {
    _Atomic uint64_t *arena;
    uint64_t frames;
    pthread_mutex_t pool;
    /* For each frame: it is out. */
    bool *is_out;
    uint64_t frames_out;
    struct superpage *table;
    uint64_t superpages;

    /* What is to go wrong. */
    atomic_uint fail_allocations;
    atomic_uint fail_maps;
    atomic_bool maps_pieces;
    _Atomic uint64_t busy;

    /* Called before a zero check, and may replace its answer. */
    bool (*before_zero_check)(void *opaque, uint64_t mfn, uint32_t *answer);
    void *before_opaque;

    atomic_uint flushes, parks, retires;
    /* Threads in functions of the machine, and the most there were. */
    atomic_int inside, most_inside;
};

/* `frames` is a multiple of 512. What the host gives out is full of rubbish. */
void machine_init(struct machine *machine, uint64_t frames, uint64_t superpages);
void machine_end(struct machine *machine);
zs_machine machine_functions(struct machine *machine);

/* One word of the guest's memory, as a CPU would: false if nothing is mapped there. */
bool guest_try_read(struct machine *machine, uint64_t gfn, unsigned word, uint64_t *value);
bool guest_try_write(struct machine *machine, uint64_t gfn, unsigned word, uint64_t value);

#endif
