#include "sums.h"

uint32_t bsd(uint32_t sum, const void *data, size_t size)
{
    const unsigned char *byte = data;
    while (size--)
        sum = ((sum >> 1 | (sum & 1) << 15) + *byte++) & 0xffff;
    return sum;
}
