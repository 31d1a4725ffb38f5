#include "sums.h"

uint32_t fletcher16(uint32_t sum, const void *data, size_t size)
{
    const unsigned char *byte = data;
    uint32_t a = sum & 0xff, b = sum >> 8;
    while (size--) {
        a = (a + *byte++) % 255;
        b = (b + a) % 255;
    }
    return b << 8 | a;
}
