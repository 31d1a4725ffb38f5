/* Prints the table of CRC-32 as C. */
#include <stdint.h>
#include <stdio.h>

int main(void)
{
    puts("#include \"sums.h\"\n\nconst uint32_t crc_table[256] = {");
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t value = n;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ 0xedb88320 : value >> 1;
        printf("    0x%08x,\n", (unsigned)value);
    }
    puts("};");
    return 0;
}
