package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// haltedGuest is the machine section's rest for a guest that is there and takes
// no time: its firmware halts the processor at the first instruction, 16 bytes
// below the end of the first megabyte. QEMU wants 64 KiB at least.
func haltedGuest(t *testing.T) string {
	t.Helper()
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], "\xfa\xf4\xeb\xfd") // cli; hlt; jmp to the hlt
	file := filepath.Join(t.TempDir(), "halt.bin")
	if err := os.WriteFile(file, rom, 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("memory = \"16MiB\"\nargs = [\"-bios\", %q]\n", file)
}
