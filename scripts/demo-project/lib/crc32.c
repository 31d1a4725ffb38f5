#include "sums.h"

uint32_t crc32(uint32_t sum, const void *data, size_t size)
{
    const unsigned char *byte = data;
    sum = ~sum;
    while (size--)
        sum = sum >> 8 ^ crc_table[(sum ^ *byte++) & 0xff];
    return ~sum;
}
