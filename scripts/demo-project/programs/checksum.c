/* Prints the CRC-32 and the Adler-32 of each file. */
#include <stdio.h>

#include "sums.h"
#include "version.h"

int main(int count, char **names)
{
    printf("# checksum %s\n", VERSION);
    for (int n = 1; n < count; n++) {
        FILE *file = fopen(names[n], "rb");
        if (!file) {
            perror(names[n]);
            return 1;
        }
        uint32_t crc = 0, adler = 1;
        char data[4096], crc_text[9], adler_text[9];
        for (size_t size; (size = fread(data, 1, sizeof data, file)) > 0;) {
            crc = crc32(crc, data, size);
            adler = adler32(adler, data, size);
        }
        fclose(file);
        to_hex(crc, crc_text);
        to_hex(adler, adler_text);
        printf("%s %s %s\n", crc_text, adler_text, names[n]);
    }
    return 0;
}
