package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vmrun/vmrun/integration/internal/feature"
)

// bootFeatures are what every test with a micro guest needs, next to the
// network's own.
var bootFeatures = []string{"qemu", "qemu-img", "kernel", "busybox"}

// writeProfile writes a profile of the given name into dir and returns its
// path. All guests run under TCG, which works everywhere.
func writeProfile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name+".toml")
	if err := os.WriteFile(path, []byte("[machine]\naccel = \"tcg\"\n"+text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// guestTools are functions for the scripts of micro guests. The time limit of
// busybox's wget crashes in Debian 12, hence the other one.
const guestTools = `
fetch() { timeout 10 wget -q -O - "http://$1/" 2>&1; }
resolve() { nslookup -type=a "$1" 2>/dev/null | sed -n 's/^Address: *\([0-9.]*\)$/\1/p'; }
`

// micro is the boot section of the micro guest with a shell script as its
// command.
func micro(t *testing.T, script string) string {
	t.Helper()
	kernel, err := feature.Kernel()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[boot]\nkernel = %q\ninitrd = \"micro\"\ncommand = [\"sh\", \"-c\", %s]\n", kernel.Image, strconv.Quote(guestTools+script))
}
