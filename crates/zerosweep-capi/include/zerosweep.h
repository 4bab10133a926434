// The C interface of zerosweep: populate-on-demand guest memory that keeps superpages whole.
//
// This file is made from crates/zerosweep-capi/src; docs/c.md is the introduction.
//
// Threads: any thread may call any function at any time, also with the same domain, unless a
// function says otherwise. The library does the locking and the waiting. What a pointer argument
// points to is read or written during the call only, and belongs to the caller.
//
// Structures that begin with `size` grow at their end. Set `size` to sizeof, and all fields that
// you do not use to 0. Older and newer programs and libraries then understand each other.
//
// Numbers of pages, gfns (where the guest sees a page) and mfns (which frame stands behind it) are
// in units of 4 KiB; an order is the log2 of a number of pages: 0 is a page, 9 a superpage of 2 MiB.
//
// SPDX-License-Identifier: MIT OR Apache-2.0

#ifndef ZEROSWEEP_H
#define ZEROSWEEP_H

#include <stddef.h>
#include <stdint.h>

// The version of this interface. It changes only when a program that was compiled with an older
// header would not work any more; zs_abi_version() says which one the library has.
#define ZS_ABI_VERSION 1

// Bytes in a page: gfns and mfns count these.
#define ZS_PAGE_BYTES 4096

// Pages in a superpage: 2 MiB, order 9.
#define ZS_SUPERPAGE_PAGES 512

// The largest order of a range: 1 GiB.
#define ZS_ORDER_MAX 18

// What a zero check returns when it found no word that is not zero.
#define ZS_ALL_ZERO UINT32_MAX

// The result of a call. 0: done. Above 0: no error, but not done either. Below 0: an error;
// nothing was changed, unless the function says otherwise. zs_error_message() has a text for each.
enum zs_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Done.
    ZS_STATUS_OK = 0,
    // Work is left: serve others, then call again.
    ZS_STATUS_MORE = 1,
    // No frame can be found. Let the guest wait (zs_fault_wait()), borrow (zs_fault_borrowing()),
    // raise the target, or end the guest.
    ZS_STATUS_EXHAUSTED = 2,
    // A pointer that must not be NULL is NULL.
    ZS_STATUS_NULL = -1,
    // A structure's `size` is too small: it was not set.
    ZS_STATUS_SIZE = -2,
    // A structure asks for something that this library does not know yet.
    ZS_STATUS_UNSUPPORTED = -3,
    // A field has an invalid value.
    ZS_STATUS_VALUE = -4,
    // No policy has this name.
    ZS_STATUS_POLICY = -5,
    // A function of zs_machine that must not be NULL is NULL.
    ZS_STATUS_MACHINE = -6,
    // max_pages is 0, or too large.
    ZS_STATUS_MAX_PAGES = -7,
    // The target is 0, or above max_pages.
    ZS_STATUS_TARGET = -8,
    // The order is above ZS_ORDER_MAX.
    ZS_STATUS_ORDER = -9,
    // The range ends beyond the guest's memory.
    ZS_STATUS_OUT_OF_RANGE = -10,
    // Ram or special is in the way.
    ZS_STATUS_BUSY = -11,
    // The domain would hold more than its target.
    ZS_STATUS_OVER_TARGET = -12,
    // The host has no frame to give. After zs_set_target() and zs_fill() the new target is in
    // force, and the frames that were taken are in the cache. Call zs_fill() to go on.
    ZS_STATUS_OUT_OF_FRAMES = -13,
    // There is no memory for the engine's own tables.
    ZS_STATUS_OUT_OF_MEMORY = -14,
    // The page is not the guest's.
    ZS_STATUS_UNMAPPED = -15,
    // The page is special: not the engine's.
    ZS_STATUS_SPECIAL = -16,
    // The machine did not map a frame.
    ZS_STATUS_MAP_FAILED = -17,
    // The page has no frame.
    ZS_STATUS_NO_FRAME = -18,
    // The frame is not in the cache.
    ZS_STATUS_NOT_CACHED = -19,
    // The domain is being taken down.
    ZS_STATUS_DYING = -20,
    // The audit found a difference.
    ZS_STATUS_AUDIT_FAILED = -21,
    // The call came from within a function of zs_machine, or from an event.
    ZS_STATUS_REENTRANT = -22,
    // A function of zs_machine gave an invalid answer, or the engine found a defect in itself. The
    // domain cannot be used any more: all calls except zs_failure() and zs_domain_destroy() return
    // this. zs_failure() says more.
    ZS_STATUS_BROKEN = -23,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_status zs_status;
#else
typedef int32_t zs_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What may be in a frame.
enum zs_content
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Anything.
    ZS_CONTENT_UNKNOWN = 0,
    // Zeros only.
    ZS_CONTENT_ZERO = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_content zs_content;
#else
typedef uint32_t zs_content;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How zs_machine.map mapped a run.
enum zs_mapped
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // As one mapping of the order that was asked for.
    ZS_MAPPED_WHOLE = 0,
    // As single pages.
    ZS_MAPPED_PIECES = 1,
    // Not at all; nothing has changed.
    ZS_MAPPED_FAILED = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_mapped zs_mapped;
#else
typedef uint32_t zs_mapped;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The result of zs_machine.unmap.
enum zs_unmapped
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // The guest cannot reach the run any more, once flushed.
    ZS_UNMAPPED_DONE = 0,
    // Something else uses the run, such as a device. It is mapped as before, but perhaps as single
    // pages.
    ZS_UNMAPPED_BUSY = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_unmapped zs_unmapped;
#else
typedef uint32_t zs_unmapped;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Whether the machine's functions are called by several threads at once.
enum zs_machine_calls
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // By all threads that call this library, but never for the same pages or frames at once. This
    // includes allocate, allocate_in, free and flush.
    ZS_MACHINE_CALLS_CONCURRENT = 0,
    // By one thread at a time: the machine needs no lock because of this library. A fault may then
    // wait while another thread's call checks, clears or copies a superpage.
    ZS_MACHINE_CALLS_SERIAL = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_machine_calls zs_machine_calls;
#else
typedef uint32_t zs_machine_calls;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What a touch of a page that is ballooned out means.
enum zs_invalid_touch
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // An error of the guest's, as under Xen: ZS_STATUS_UNMAPPED.
    ZS_INVALID_TOUCH_REFUSE = 0,
    // The guest may use the page again without saying so, as under QEMU: the page is promised and
    // populated at once.
    ZS_INVALID_TOUCH_INCREASE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_invalid_touch zs_invalid_touch;
#else
typedef uint32_t zs_invalid_touch;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Which thread does the upkeep: clears frames, breaks superpages with retained pages, and returns
// surplus frames to the host.
enum zs_upkeep_by
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // The operation that causes it, before it returns.
    ZS_UPKEEP_BY_OPERATION = 0,
    // The program, in a thread of its own: zs_wants_upkeep() and zs_upkeep().
    ZS_UPKEEP_BY_CALLER = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_upkeep_by zs_upkeep_by;
#else
typedef uint32_t zs_upkeep_by;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What zs_event says.
enum zs_event_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // A promised range got a frame: gfn, mfn, order; fault: the page that was touched.
    ZS_EVENT_KIND_POPULATE = 0,
    // A zero range is promised again, its frame is in the cache: gfn, mfn, order.
    ZS_EVENT_KIND_RECLAIM = 1,
    // The entry of a promised superpage was broken because no superpage was cached: gfn, fault.
    ZS_EVENT_KIND_SPLINTER = 2,
    // The entry of a populated superpage was broken: gfn.
    ZS_EVENT_KIND_SHATTER = 3,
    // A superpage with few live pages gave up its frames: gfn, mfn; pages: how many were live.
    ZS_EVENT_KIND_EVACUATE = 4,
    // A range is not the guest's any more: gfn, order.
    ZS_EVENT_KIND_REMOVE = 5,
    // The frame of a range that was given back went to the cache: gfn, mfn, order.
    ZS_EVENT_KIND_STEAL = 6,
    // A frame went back to the host: mfn, order.
    ZS_EVENT_KIND_RETURN = 7,
    // The guest will soon be out of frames: pages: how many it can still touch without a scan;
    // likely: how many more a scan should find.
    ZS_EVENT_KIND_LOW = 8,
    // No frame could be found: gfn, the page that was touched.
    ZS_EVENT_KIND_EXHAUSTED = 9,
    // A step of a sweep ended: gfn: where it began; pages: how many it reclaimed.
    ZS_EVENT_KIND_SWEEP = 10,
    // The guest has taken a retained page again: gfn.
    ZS_EVENT_KIND_RETAKE = 11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_event_kind zs_event_kind;
#else
typedef uint32_t zs_event_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The kind of a page's entry.
enum zs_entry_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    // Nothing: given back, or never there.
    ZS_ENTRY_KIND_INVALID = 0,
    // It is promised and has no frame yet.
    ZS_ENTRY_KIND_POD = 1,
    // A frame.
    ZS_ENTRY_KIND_RAM = 2,
    // It is never reclaimed, and not the engine's.
    ZS_ENTRY_KIND_SPECIAL = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum zs_entry_kind zs_entry_kind;
#else
typedef uint32_t zs_entry_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// A guest's memory under the engine.
typedef struct zs_domain zs_domain;

// Something that the engine did. Fields that zs_event_kind does not name are 0.
typedef struct zs_event {
    // Bytes in this structure, by the library.
    size_t size;
    // A zs_event_kind. Ignore kinds that you do not know.
    uint32_t kind;
    // Size of the range: 2^order pages.
    uint32_t order;
    // First page of the range.
    uint64_t gfn;
    // First frame.
    uint64_t mfn;
    // The page that was touched.
    uint64_t fault;
    // A number of pages.
    uint64_t pages;
    // Another one.
    uint64_t likely;
} zs_event;

// How a domain is made. Set `size`, `max_pages` and `target`; zero is a good value for the others.
typedef struct zs_config {
    // sizeof(zs_config).
    size_t size;
    // Pages that the guest is told that it has: gfns 0 to max_pages - 1.
    uint64_t max_pages;
    // Pages that the domain may hold: 1 to max_pages.
    uint64_t target;
    // A policy's name: "zerosweep" (also for NULL), "none", "hypercall-2011",
    // "rfc-2011:gate=debt", "rfc-2011:gate=always", "xen-2012", "xen-2016". Read during the call
    // only.
    const char *policy;
    // A zs_invalid_touch.
    uint32_t invalid_touch;
    // A zs_upkeep_by.
    uint32_t upkeep_by;
    // A zs_machine_calls.
    uint32_t machine_calls;
    // 0.
    uint32_t reserved;
    // How many bytes one zs_fault() may scan before it returns ZS_STATUS_MORE; 0: 8 MiB.
    uint64_t fault_budget_bytes;
    // If the machine's frames are numbered from 0: how many there are, so that tables for them are
    // allocated at the start. 0: not known.
    uint64_t expect_frames;
    // Called with each event; NULL: events are not reported. The thread that works calls it with
    // one event at a time, in order, under the domain's lock. It should record the event and
    // return. It may not call this library, nor wait for a thread that does.
    void (*event)(void *opaque, const struct zs_event *event);
    // Passed to `event`.
    void *event_opaque;
} zs_config;

// The machine, which moves frames: a table of functions of the program.
//
// Runs have order 0 (a page) or 9 (a superpage, aligned to 512), unless a function says otherwise.
// A function that fails must have changed nothing. Every function gets `opaque`.
//
// The functions may not call this library (except zs_first_nonzero(); other calls return
// ZS_STATUS_REENTRANT), throw, or leave by longjmp. They are called without a lock of the library,
// except the one that ZS_MACHINE_CALLS_SERIAL asks for. The range that they work on is claimed
// meanwhile: a thread that touches it waits, in zs_fault().
//
// An invalid answer, such as a frame that is not aligned, breaks the domain: ZS_STATUS_BROKEN.
typedef struct zs_machine {
    // sizeof(zs_machine).
    size_t size;
    // Passed to every function.
    void *opaque;
    // Takes a run from the host. Returns 0 and the first frame, aligned to its order; anything
    // else if the host has none of that order. `content` is a zs_content, ZS_CONTENT_UNKNOWN
    // unless it is written.
    int32_t (*allocate)(void *opaque, uint32_t order, uint64_t *mfn, uint32_t *content);
    // Gives a run back to the host. Its content is not needed any more.
    void (*free)(void *opaque, uint64_t mfn, uint32_t order);
    // Maps a run for the guest at `gfn`, where nothing is mapped. Returns a zs_mapped.
    uint32_t (*map)(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order);
    // Unmaps a run. Returns a zs_unmapped. Single pages of a run that was mapped whole may be
    // unmapped; the others stay mapped. A run that was mapped in pieces may be unmapped whole.
    uint32_t (*unmap)(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order);
    // Waits until no CPU and no device can reach what any thread has unmapped before.
    void (*flush)(void *opaque);
    // Looks at the first 16 words of 8 bytes of each page of a mapped run. The guest may write at
    // the same time, so the result is a hint. Returns the offset of a word that is not zero, in
    // words from the first one of the run, or ZS_ALL_ZERO.
    uint32_t (*quick_check)(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t order);
    // Reads one word of 8 bytes, `word` words into a mapped superpage or page, while the guest may
    // write.
    uint64_t (*peek)(void *opaque, uint64_t gfn, uint64_t mfn, uint32_t word);
    // Looks at all words of `pages` frames, of one superframe, which are not mapped. Returns the
    // offset of the first word that is not zero, in words, or ZS_ALL_ZERO. zs_first_nonzero() does
    // this.
    uint32_t (*zero_check)(void *opaque, uint64_t mfn, uint64_t pages);
    // Fills a run that is not mapped with zeros.
    void (*clear)(void *opaque, uint64_t mfn, uint32_t order);
    // Copies a frame to another; neither is mapped.
    void (*copy)(void *opaque, uint64_t from, uint64_t to);
    // Makes a mapped page that the guest has given back zero. Returns what was in it before: a
    // zs_content.
    uint32_t (*scrub)(void *opaque, uint64_t gfn, uint64_t mfn);
    // May be NULL: the host then never has such a page. As allocate, for a single page out of the
    // 512 frames from `superframe` on. Consolidation moves live pages there.
    int32_t (*allocate_in)(void *opaque, uint64_t superframe, uint64_t *mfn, uint32_t *content);
    // May be NULL: nothing is done. A superpage that is all zero goes to the cache. Until it is
    // mapped again nothing reads it, so the machine may take the memory behind it.
    void (*park)(void *opaque, uint64_t mfn);
    // May be NULL: nothing is done. A frame that zs_offline() named leaves the domain for good. It
    // must never be given out again.
    void (*retire)(void *opaque, uint64_t mfn);
} zs_machine;

// A range that is populated.
typedef struct zs_range {
    // First page.
    uint64_t gfn;
    // Size: 2^order pages.
    uint32_t order;
    // 0.
    uint32_t reserved;
} zs_range;

// The quantities of a domain, in pages.
typedef struct zs_quantities {
    // sizeof(zs_quantities), by the caller.
    size_t size;
    // Pages that the guest is told that it has.
    uint64_t max;
    // Pages that the domain may hold.
    uint64_t target;
    // Pages with a frame.
    uint64_t populated;
    // Pages that are promised and have no frame.
    uint64_t entries;
    // Frames that back nothing.
    uint64_t cache;
    // Pages that were given back and whose frame stays in its superpage until it is needed.
    uint64_t retained;
    // What the domain holds: populated + cache + retained.
    uint64_t total;
    // What the guest has not given back: populated + entries.
    uint64_t guest;
    // What must be found before all that is promised is backed: entries - cache - retained.
    int64_t debt;
    // What the guest has still to give back: guest - target.
    int64_t owed;
    // Pages held beyond the target because no frame could be found.
    uint64_t borrowed;
    // Superpages in the cache.
    uint64_t cached_superpages;
    // Forecast: pages that can be touched without a scan.
    uint64_t certain;
    // Forecast: more pages that are retained or that a sweep should find.
    uint64_t likely;
    // Forecast: pages promised beyond both.
    uint64_t missing;
} zs_quantities;

// What a domain has done since it was made. Pages are of 4 KiB.
typedef struct zs_statistics {
    // sizeof(zs_statistics), by the caller.
    size_t size;
    // Superpages that were mapped at a fault, refills included.
    uint64_t populates_2m;
    // Single pages that were mapped at a fault.
    uint64_t populates_4k;
    // Zero checks of superpages.
    uint64_t zero_checks_2m;
    // Zero checks that found a zero superpage.
    uint64_t zero_checks_2m_hit;
    // Zero checks of single pages.
    uint64_t zero_checks_4k;
    // Zero checks that found a zero single page.
    uint64_t zero_checks_4k_hit;
    // Bytes that were read by zero checks.
    uint64_t bytes_scanned;
    // Bytes that were cleared.
    uint64_t bytes_cleared;
    // Bytes that were copied.
    uint64_t bytes_copied;
    // Ranges checked from the ring of recently populated ones.
    uint64_t eager_checks;
    // Steps of emergency sweeps.
    uint64_t emergency_sweeps;
    // PoD superpage entries that were broken.
    uint64_t splinters;
    // Ram superpage entries that were broken.
    uint64_t shatters;
    // Zero superpages whose frames went to the cache whole.
    uint64_t superpages_reclaimed;
    // Zero single pages whose frames went to the cache.
    uint64_t singles_reclaimed;
    // Pages whose frames went to the cache when they were given back.
    uint64_t pages_stolen;
    // Superpages returned to the host whole.
    uint64_t superpages_returned;
    // Single pages returned to the host.
    uint64_t pages_returned_4k;
    // Pages that the guest gave back.
    uint64_t pages_given_back;
    // Times that no frame could be found.
    uint64_t exhaustions;
    // Flushes of the TLBs after unmaps.
    uint64_t unmap_flushes;
    // Unmaps that the machine refused because something else used the page.
    uint64_t busy;
    // Pages that were taken beyond the target.
    uint64_t borrowed;
    // Superframes that the cache got back whole, single by single.
    uint64_t rejoined;
    // Superpages whose live pages were copied elsewhere.
    uint64_t evacuations;
    // Broken ranges that became superpages again because their live pages were copied together.
    uint64_t refills;
    // Pages that were given back and whose frame stayed in its superpage.
    uint64_t pages_retained;
    // Retained pages that the guest took again.
    uint64_t pages_retaken;
    // Pages that a consolidation moved.
    uint64_t pages_consolidated;
    // The most pages that were held at any moment.
    uint64_t peak_total;
    // Times that the guest was about to run out of frames.
    uint64_t low_forecasts;
    // Pages without frames that the host's own reads saw as zeros.
    uint64_t pages_shown;
} zs_statistics;

// The entry of a page.
typedef struct zs_entry {
    // sizeof(zs_entry), by the caller.
    size_t size;
    // A zs_entry_kind.
    uint32_t kind;
    // 9 if one entry is for the whole superpage, else 0.
    uint32_t order;
    // The frame of this page, if it is ram.
    uint64_t mfn;
    // 1 if the frame is pinned.
    uint32_t is_pinned;
    // 1 while an operation works on the superpage around the page.
    uint32_t is_in_transit;
} zs_entry;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns the library's ZS_ABI_VERSION. If it differs from the header's, do not go on.
uint32_t zs_abi_version(void);

// Returns the library's version, such as "0.1.0". The string belongs to the library.
const char *zs_version(void);

// Returns what a zs_status means, in English. The string belongs to the library. Any number is
// allowed.
const char *zs_error_message(int32_t status);

// Makes a domain without a page. Call zs_populate_on_demand() and zs_set_target() next.
//
// Both structures are copied. What their pointers point to must stay until zs_domain_destroy(),
// except `policy`. The domain belongs to the caller. Any number of threads may call the functions
// that take a domain at once, unless a function says otherwise.
//
// Errors: NULL, SIZE, UNSUPPORTED, VALUE, POLICY, MACHINE, MAX_PAGES, TARGET, OUT_OF_MEMORY.
// *domain is written only if there is no error.
zs_status zs_domain_create(const struct zs_config *config,
                           const struct zs_machine *machine,
                           struct zs_domain **domain);

// Frees a domain's own memory; NULL is allowed. The machine is not called: to give the frames back
// to it, call zs_teardown() before. No other thread may be in a call with this domain, or make one
// later.
//
// Errors: REENTRANT.
zs_status zs_domain_destroy(struct zs_domain *domain);

// Promises 2^order pages from `gfn` on: a touch will populate them. Pages that are promised
// already stay promised, and are not counted again. Any alignment.
//
// Errors: ORDER, OUT_OF_RANGE, BUSY (ram or special in the range), OUT_OF_MEMORY, DYING.
zs_status zs_populate_on_demand(struct zs_domain *domain, uint64_t gfn, uint32_t order);

// Marks 2^order pages from `gfn` on as special: MMIO, foreign, page tables. The engine never
// touches them. Pages that were promised there are promised no longer. Any alignment.
//
// Errors: ORDER, OUT_OF_RANGE, BUSY (ram in the range), OUT_OF_MEMORY, DYING.
zs_status zs_set_special(struct zs_domain *domain, uint64_t gfn, uint32_t order);

// Populates 2^order pages from `gfn` on with frames from the host, all or nothing: a kernel image,
// or memory that the guest asks for again. Promised pages there are replaced. Any alignment.
//
// Errors: ORDER, OUT_OF_RANGE, BUSY (ram or special in the range), OVER_TARGET, OUT_OF_FRAMES,
// OUT_OF_MEMORY, DYING.
zs_status zs_populate_physmap(struct zs_domain *domain, uint64_t gfn, uint32_t order);

// Pins a populated page: its frame is never checked, moved or reclaimed until zs_unpin(). The
// superpage around it is broken.
//
// Errors: OUT_OF_RANGE, NO_FRAME, MAP_FAILED, OUT_OF_MEMORY.
zs_status zs_pin(struct zs_domain *domain, uint64_t gfn);

// Ends zs_pin(). A page that is not pinned stays so. Errors: as zs_pin().
zs_status zs_unpin(struct zs_domain *domain, uint64_t gfn);

// Sets how many pages the domain may hold, fills the cache up to it, and breaks superpages with
// retained pages while the total is above it. This may take long; zs_begin_target() works in
// steps.
//
// Errors: TARGET, DYING. OUT_OF_FRAMES, OUT_OF_MEMORY: the target is in force; call zs_fill() to
// go on.
zs_status zs_set_target(struct zs_domain *domain, uint64_t target);

// Sets how many pages the domain may hold, and does nothing else. zs_shrink() and zs_fill() do the
// rest, in steps.
//
// Errors: TARGET, DYING.
zs_status zs_begin_target(struct zs_domain *domain, uint64_t target);

// Breaks up to `steps` superpages with retained pages while the total is above the target, and
// returns surplus frames to the host. MORE if there may be more to do.
zs_status zs_shrink(struct zs_domain *domain, uint64_t steps);

// Takes up to `steps` runs from the host for the cache, as far as the target allows. MORE if there
// are more to take.
//
// Errors: OUT_OF_FRAMES, OUT_OF_MEMORY: the frames that were taken stay in the cache.
zs_status zs_fill(struct zs_domain *domain, uint64_t steps);

// The guest touched `gfn`. With OK, the range around it is populated and mapped, and `range` gets
// that range unless it is NULL. Waits for another operation on the range, but not for frames.
//
// MORE: the budget is used up; serve others and call again. EXHAUSTED: no frame can be found.
//
// Errors: UNMAPPED, SPECIAL, MAP_FAILED, OUT_OF_MEMORY, DYING.
zs_status zs_fault(struct zs_domain *domain, uint64_t gfn, struct zs_range *range);

// As zs_fault(), but takes a page from the host beyond the target instead of returning EXHAUSTED.
// The page is counted as borrowed. EXHAUSTED only if the host has no page.
zs_status zs_fault_borrowing(struct zs_domain *domain, uint64_t gfn, struct zs_range *range);

// As zs_fault(), but when there is no frame it waits until other threads' operations bring one:
// pages given back, a higher target, a sweep. EXHAUSTED if no frame came for `timeout_ms`
// (UINT64_MAX: waits for ever). Do not call it from a thread that others need to bring frames.
//
// Nothing reports the pages that the guest itself made zero. Call zs_allow_sweep() about once a
// second while a thread waits, so that they are found.
zs_status zs_fault_wait(struct zs_domain *domain,
                        uint64_t gfn,
                        uint64_t timeout_ms,
                        struct zs_range *range);

// The guest gives 2^order pages from `gfn` on back: its balloon inflates. `given`, unless it is
// NULL, says how many of them it had: pages given back before, special, pinned and busy ones do
// not count. Any alignment.
//
// Errors: ORDER, OUT_OF_RANGE, DYING.
zs_status zs_decrease(struct zs_domain *domain, uint64_t gfn, uint32_t order, uint64_t *given);

// The guest gives up the content of `pages` pages from `gfn` on and keeps the pages, which read as
// zero from now on: a free page report. `discarded`, unless it is NULL, says how many became
// promised ones.
//
// Errors: OUT_OF_RANGE, DYING.
zs_status zs_discard(struct zs_domain *domain, uint64_t gfn, uint64_t pages, uint64_t *discarded);

// The guest takes `pages` pages from `gfn` on again: its balloon deflates. Retained pages are
// retaken at once; `retaken`, unless it is NULL, says how many. For the others, call
// zs_populate_on_demand() or zs_populate_physmap(); with ZS_INVALID_TOUCH_INCREASE, the guest's
// touch is enough.
zs_status zs_retake(struct zs_domain *domain, uint64_t gfn, uint64_t pages, uint64_t *retaken);

// Goes on with a full sweep: checks `superpages` superpages from number *next on, and reclaims
// those that are zero. *next must be 0 at the start, and is advanced. MORE until the end, and
// until surplus frames have been returned to the host.
//
// Errors: NULL, DYING.
zs_status zs_sweep(struct zs_domain *domain, uint64_t *next, uint64_t superpages);

// Lets the next fault that finds no frame sweep again, although the last sweep found nothing.
zs_status zs_allow_sweep(struct zs_domain *domain);

// Returns MORE if zs_upkeep() has something to do, else OK. Cheap. `idle`: not 0 if the balloon
// has stopped, even if it has not reached the target.
zs_status zs_wants_upkeep(struct zs_domain *domain, uint32_t idle);

// Does the upkeep, in up to `steps` steps of about a superpage each. MORE if something is left.
// `idle`: as for zs_wants_upkeep(). For ZS_UPKEEP_BY_CALLER.
zs_status zs_upkeep(struct zs_domain *domain, uint64_t steps, uint32_t idle);

// Goes on with a consolidation, or begins one if `restart` is not 0, for up to `superpages` ranges.
// A consolidation moves single pages together, so that whole superpages become free. MORE until
// the end. `moved`, unless it is NULL, says how many pages this consolidation has moved. A domain
// has one consolidation; a second thread waits for the step of the first.
//
// Errors: OUT_OF_MEMORY.
zs_status zs_consolidate(struct zs_domain *domain,
                         uint32_t restart,
                         uint64_t superpages,
                         uint64_t *moved);

// Takes a broken frame out of the cache for good and calls zs_machine.retire with it. Takes
// another frame from the host if one is needed.
//
// Errors: NOT_CACHED (the guest has it, or the host), OUT_OF_MEMORY: nothing is changed.
// OUT_OF_FRAMES: it is gone, but the host had no other.
zs_status zs_offline(struct zs_domain *domain, uint64_t mfn);

// Recounts all figures. `text`, of `bytes` bytes, gets the first difference, or "" if there is
// none; it may be NULL. The audit takes time and memory by the size of the guest, under the
// domain's lock. It is for tests and for an operator's command.
//
// Errors: AUDIT_FAILED, OUT_OF_MEMORY.
zs_status zs_audit(struct zs_domain *domain, char *text, size_t bytes);

// Gets the quantities, all of the same moment. Set quantities->size before.
//
// Errors: NULL, SIZE.
zs_status zs_get_quantities(struct zs_domain *domain, struct zs_quantities *quantities);

// Gets what the domain has done since it was made. Set statistics->size before.
//
// Errors: NULL, SIZE.
zs_status zs_get_statistics(struct zs_domain *domain, struct zs_statistics *statistics);

// Gets a page's entry at this moment. Set entry->size before. A retained page is invalid, like any
// other page that was given back.
//
// Errors: NULL, SIZE, OUT_OF_RANGE.
zs_status zs_lookup(struct zs_domain *domain, uint64_t gfn, struct zs_entry *entry);

// Takes the domain down: unmaps up to `superpages` superpages, and gives their frames and those of
// the cache back to the machine. MORE until all are back, then OK. From the first call on, no
// other operation is accepted. A frame that is busy is tried again at the next call.
zs_status zs_teardown(struct zs_domain *domain, uint64_t superpages);

// Writes why calls return BROKEN to `text`, of `bytes` bytes, which may be NULL. Returns BROKEN,
// or OK and "" if the domain is not broken.
zs_status zs_failure(struct zs_domain *domain, char *text, size_t bytes);

// Looks for the first of `count` words of 8 bytes that is not zero, with vector instructions where
// the CPU has them. Returns its index, or ZS_ALL_ZERO, also if `words` is NULL. Other threads may
// write the words meanwhile; the result is then a hint. The machine's functions may call this.
//
// `words` must be aligned to 8 bytes, and `count` must be less than ZS_ALL_ZERO.
uint32_t zs_first_nonzero(const uint64_t *words, size_t count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* ZEROSWEEP_H */
