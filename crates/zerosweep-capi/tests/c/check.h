/* Assertions that say what was expected, and where. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);         \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

#define CHECK_EQ(left, right)                                                       \
    do {                                                                            \
        int64_t left_ = (int64_t)(left), right_ = (int64_t)(right);                 \
        if (left_ != right_) {                                                      \
            fprintf(stderr, "%s:%d: %s is %" PRId64 ", not %s, %" PRId64 "\n",       \
                    __FILE__, __LINE__, #left, left_, #right, right_);              \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

#define OK(call) CHECK_EQ(call, ZS_STATUS_OK)

#endif
