package images

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images/guest"
)

// MicroSpec is what a micro guest is made of.
type MicroSpec struct {
	Kernel     string   `json:"kernel"`                // for its version; the initramfs does not contain it
	ModulesDir string   `json:"modules_dir,omitempty"` // "": found by the kernel's version, beside it or on the host
	Init       string   `json:"init"`                  // the static vmrun binary, which becomes /init
	Busybox    string   `json:"busybox,omitempty"`     // a static busybox; "": the guest has no shell
	Command    []string `json:"command,omitempty"`     // what the guest runs; nil: an interactive shell

	// LeaseTimeout is how long the guest waits for leases before it runs the
	// command all the same; 0: 30 seconds.
	LeaseTimeout time.Duration `json:"lease_timeout_ns,omitempty"`
}

// ErrNotStatic is in the chain of PrepareMicro's error where a program of the
// guest needs shared libraries, which the guest lacks.
var ErrNotStatic = errors.New("not statically linked")

// PrepareMicro returns the path of the initramfs that spec describes, in
// cacheDir. One that was made before is used again if all it was made of is
// unchanged. The file is complete whenever it is there under its name; callers
// may run at the same time, in one process or many. It stays: SweepMicro
// removes what is no longer used.
func PrepareMicro(ctx context.Context, spec MicroSpec, cacheDir string) (string, error) {
	r, err := newRecipe(spec)
	if err != nil {
		return "", fmt.Errorf("prepare micro guest: %w", err)
	}
	path, err := cache{dir: cacheDir}.provide(ctx, r)
	if err != nil {
		return "", fmt.Errorf("prepare micro guest: %w", err)
	}
	return path, nil
}

// recipe is all that decides an initramfs's content.
type recipe struct {
	config     guest.Config
	init       string
	busybox    string   // "": none
	modulesDir string   // "": none
	modules    []module // in load order
	version    string   // the kernel's; names the modules' folder in the guest
}

// newRecipe checks spec and resolves its modules.
func newRecipe(spec MicroSpec) (*recipe, error) {
	if err := checkStatic(spec.Init); err != nil {
		return nil, err
	}
	version, err := KernelVersion(spec.Kernel)
	if err != nil {
		return nil, err
	}
	r := &recipe{
		config:     guest.Config{Command: spec.Command, LeaseTimeout: spec.LeaseTimeout},
		init:       spec.Init,
		busybox:    spec.Busybox,
		modulesDir: spec.ModulesDir,
		version:    version,
	}
	if spec.Busybox != "" {
		r.config.Shell = "/bin/sh"
		if err := checkStatic(spec.Busybox); err != nil {
			return nil, err
		}
	}
	if r.modulesDir == "" {
		r.modulesDir = findModules(spec.Kernel, version)
	}
	if r.modulesDir == "" {
		return r, nil
	}
	return r, r.resolveModules()
}

// resolveModules decides which modules the guest gets.
func (r *recipe) resolveModules() error {
	tree, err := loadModuleTree(r.modulesDir)
	if err != nil {
		return err
	}
	r.modules, r.config.Missing, err = tree.resolve(bootModules)
	for _, m := range r.modules {
		r.config.Modules = append(r.config.Modules, r.guestPath(m))
	}
	return err
}

// guestPath is where a module is in the guest.
func (r *recipe) guestPath(m module) string {
	return path.Join("/lib/modules", r.version, unpackedPath(m.path))
}

// digest identifies the recipe and the present content of its files. The files
// are told apart by what the kernel changes with every write, since reading
// them all would take longer than building the archive.
func (r *recipe) digest() (string, error) {
	h := sha256.New()
	head, err := json.Marshal(struct {
		Layout  int
		Version string
		Config  guest.Config
	}{archiveLayout, r.version, r.config})
	if err != nil {
		return "", err
	}
	h.Write(head)
	for _, file := range r.files() {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			return "", fmt.Errorf("stat %q: %w", file, err)
		}
		fmt.Fprintf(h, "%d %d %d %v %v\n", st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// files lists the files of the host that go into the archive.
func (r *recipe) files() []string {
	files := []string{r.init}
	if r.busybox != "" {
		files = append(files, r.busybox)
	}
	for _, m := range r.modules {
		files = append(files, filepath.Join(r.modulesDir, m.path))
	}
	return files
}

// checkStatic refuses programs that need a loader, which the guest lacks.
func checkStatic(file string) error {
	if _, err := os.Stat(file); err != nil {
		return fmt.Errorf("open program %q: %w", file, cause(err))
	}
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("read program %q: %w", file, cause(err))
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("read program %q: for %v, not for x86-64", file, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("read program %q: %w", file, ErrNotStatic)
		}
	}
	return nil
}
