package profiles

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write what the tests find to testdata")

// TestFaults loads each profile of the archives in testdata/faults and
// compares the faults with those that the archive has under "NAME: faults".
// Files in folders are there to be extended.
func TestFaults(t *testing.T) {
	archives, err := filepath.Glob("testdata/faults/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			testFaultArchive(t, path)
		})
	}
}

const faultsSuffix = ": faults"

func testFaultArchive(t *testing.T, path string) {
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	var inputs []txtar.File
	for _, f := range archive.Files {
		if name, ok := strings.CutSuffix(f.Name, faultsSuffix); ok {
			want[name] = string(f.Data)
		} else {
			inputs = append(inputs, f)
		}
	}
	archive.Files = inputs
	dir := t.TempDir()
	if err := txtar.Write(archive, dir); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	var found []txtar.File
	for _, f := range inputs {
		found = append(found, f)
		if strings.Contains(f.Name, "/") {
			continue
		}
		got := faultLines(t, f.Name)
		found = append(found, txtar.File{Name: f.Name + faultsSuffix, Data: []byte(got)})
		if diff := cmp.Diff(want[f.Name], got); diff != "" && !*update {
			t.Errorf("%s (-want +got):\n%s", f.Name, diff)
		}
	}
	if *update {
		archive.Files = found
		if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func faultLines(t *testing.T, path string) string {
	t.Helper()
	_, err := Load(path)
	if err == nil {
		return ""
	}
	var faults Faults
	if !errors.As(err, &faults) {
		t.Fatalf("Load(%s): %v: not of type Faults", path, err)
	}
	return faults.Error() + "\n"
}

// TestGolden compares what the profiles in testdata/good resolve to.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/good/*.toml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no profiles: %v", err)
	}
	for _, path := range append(paths, "testdata/reference.toml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			profile, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			dir, err := filepath.Abs("testdata")
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(dump("", reflect.ValueOf(*profile)), dir, "$TESTDATA")
			golden := strings.TrimSuffix(path, ".toml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// dump writes each value of a profile that is not zero on a line of its own.
func dump(path string, v reflect.Value) string {
	var b strings.Builder
	_, stringer := v.Interface().(fmt.Stringer)
	switch {
	case v.IsZero():
	case stringer:
		fmt.Fprintf(&b, "%s = %v\n", path, v)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			b.WriteString(dump(strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."), v.Field(i)))
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			b.WriteString(dump(fmt.Sprintf("%s[%d]", path, i), v.Index(i)))
		}
	case v.Kind() == reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			b.WriteString(dump(fmt.Sprintf("%s[%s]", path, key), v.MapIndex(key)))
		}
	case v.Kind() == reflect.String:
		fmt.Fprintf(&b, "%s = %q\n", path, v)
	default:
		fmt.Fprintf(&b, "%s = %v\n", path, v)
	}
	return b.String()
}

func TestLoadUnreadable(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "none.toml")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	for _, path := range []string{dir, "/dev/zero"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("Load(%s): %v", path, err)
		}
	}
}

func TestParseText(t *testing.T) {
	tests := []struct {
		name, text, want string
	}{
		{"limit", strings.Repeat("#", maxFile-1) + "\n", "vm.toml:1: nothing to boot from: set boot.kernel, or add [[disks]] or [[nics]]"},
		{"over", strings.Repeat("#", maxFile) + "\n", "vm.toml:1: larger than 1 MiB"},
		{"ten mebibytes", strings.Repeat("k=1\n", 10<<18), "vm.toml:1: larger than 1 MiB"},
		{"binary", "\n\x7fELF\x00\x01", "vm.toml:2: not a text file: NUL byte in column 5"},
		{"latin1", "# gr\xfcn", "vm.toml:1: not a text file: invalid UTF-8"},
		{"keys", strings.Repeat("[[nics]]\n", maxKeys+1), "vm.toml:1: more than 4096 keys"},
		{"deep", "a=" + strings.Repeat("[", 20000), "vm.toml:1: arrays and inline tables are nested more than the maximum of 10000 levels deep"},
		{"crlf", "boot.kernel = 'auto'\r\n\r\nnam = 1\r\n", "vm.toml:3: unknown key \"nam\": did you mean \"name\"?"},
		{"mark", "\ufeffboot.kernel = 'auto'\nnam = 1", "vm.toml:2: unknown key \"nam\": did you mean \"name\"?"},
		{"control", "\"\\u001b\" = 1\n\"\\u001b\" = 2", "vm.toml:2: key \ufffd is already defined"},
		{"long path", "boot.kernel = '" + strings.Repeat("a", 4096) + "'", "vm.toml:1: boot.kernel: \"" + strings.Repeat("a", 60) + "\"… (4096 bytes) is too long for a path: at most 4095 bytes"},
		{"long cmdline", "boot.kernel = 'auto'\nboot.cmdline = '" + strings.Repeat("a", 1901) + "'", "vm.toml:2: boot.cmdline: \"" + strings.Repeat("a", 60) + "\"… (1901 bytes) is too long for a kernel: at most 1900 bytes"},
		{"absolute base", "extends = '/nowhere/../base.toml'", "vm.toml:1: extends: read \"/nowhere/../base.toml\": no such file or directory"},
		{"array line", "nics = [\n{},\n\n{},]", "vm.toml:2: nics[0].network: missing: name a network of this file, or nat, host-only or user\nvm.toml:4: nics[1].network: missing: name a network of this file, or nat, host-only or user"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(test.text), "vm.toml")
			if fmt.Sprint(err) != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestParseReader(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Parse(readerFunc(func([]byte) (int, error) { return 0, broken }), "vm.toml"); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestDepth holds that eight bases are taken; a ninth is one of the faults in
// testdata.
func TestDepth(t *testing.T) {
	t.Chdir(t.TempDir())
	for i := range maxExtends {
		text := fmt.Sprintf("extends = 'd%d.toml'\n", i+1)
		if err := os.WriteFile(fmt.Sprintf("d%d.toml", i), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(fmt.Sprintf("d%d.toml", maxExtends), []byte("boot.kernel = 'auto'"), 0o600); err != nil {
		t.Fatal(err)
	}
	profile, err := Load("d0.toml")
	if err != nil {
		t.Fatal(err)
	}
	if profile.Boot.Kernel != KernelAuto {
		t.Errorf("kernel is %q", profile.Boot.Kernel)
	}
}

// TestMergeKeepsPaths holds that a path is relative to the file that it is
// written in, and that a network belongs to the last file that defines it.
func TestMergeKeepsPaths(t *testing.T) {
	dir := t.TempDir()
	archive := txtar.Parse([]byte(`
-- vms/web.toml --
extends = "../base/linux.toml"
disks = [{ path = "web.qcow2" }]
[networks.lan]
mtu = 1400
-- base/linux.toml --
disks = [{ path = "a.qcow2" }, { path = "b.qcow2" }]
[boot]
kernel = "vmlinuz"
[networks.lan]
mode = "nat"
[networks.other]
mode = "nat"
`))
	if err := txtar.Write(archive, dir); err != nil {
		t.Fatal(err)
	}
	profile, err := Load(filepath.Join(dir, "vms/web.toml"))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{profile.Name, profile.Boot.Kernel, profile.Disks[0].Path, profile.Networks["lan"].Dir, profile.Networks["other"].Dir}
	want := []string{"web", dir + "/base/vmlinuz", dir + "/vms/web.qcow2", dir + "/vms", dir + "/base"}
	if diff := cmp.Diff(want, got); diff != "" || len(profile.Disks) != 1 {
		t.Errorf("%d disks (-want +got):\n%s", len(profile.Disks), diff)
	}
}
