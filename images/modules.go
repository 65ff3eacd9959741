package images

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// bootModules is what the micro guest loads, in this order after whatever each
// depends on: what it takes to see NICs, disks and the host's requests.
var bootModules = []string{
	"virtio_pci", "virtio_mmio", "virtio_rng", "virtio_net", "af_packet",
	"virtio_blk", "virtio_console", "virtio_balloon",
	"evdev", "button", // the power button
	"pvpanic_pci", "pvpanic_mmio", "pvpanic",
	"8021q", // for commands that make VLAN interfaces of their own
}

// module is one file of a modules folder.
type module struct {
	path    string   // slash-separated, relative to the folder
	depends []string // names, in the form of moduleName
}

// moduleTree knows the modules of one kernel, by name.
type moduleTree struct {
	dir     string
	modules map[string]module
	builtin map[string]bool
	// depends reads a module's dependencies from its file, where the folder
	// has no list of them.
	depends func(module) ([]string, error)
}

// moduleName is the name by which the kernel knows a module's file: its first
// part, with underscores, as the kernel's build turns dashes into them.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// findModules finds the modules folder of a kernel: where the kernel's package
// was unpacked, beside the kernel itself, or on the host. It is "" where there
// is none, as for a kernel that has all of its drivers built in.
func findModules(kernel, version string) string {
	if version == "" {
		return ""
	}
	beside := filepath.Dir(kernel)
	for _, dir := range []string{
		filepath.Join(beside, "..", "lib", "modules", version),
		filepath.Join(beside, "..", "usr", "lib", "modules", version),
		beside,
		filepath.Join("/lib/modules", version),
		filepath.Join("/usr/lib/modules", version),
	} {
		if _, err := os.Stat(filepath.Join(dir, "modules.order")); err == nil {
			return dir
		}
	}
	return ""
}

// loadModuleTree reads what the folder of a kernel's modules says about them.
func loadModuleTree(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir}
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("read modules of %q: %w", dir, err)
	}
	return t, nil
}

func (t *moduleTree) load() (err error) {
	t.builtin, err = parseFile(filepath.Join(t.dir, "modules.builtin"), parseBuiltin)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	t.modules, err = parseFile(filepath.Join(t.dir, "modules.dep"), parseModulesDep)
	if errors.Is(err, fs.ErrNotExist) {
		// A package that was unpacked but not installed: depmod hasn't run.
		t.depends = t.readDepends
		t.modules, err = walkModules(t.dir)
	}
	return err
}

// parseFile opens path for parse.
func parseFile[T any](path string, parse func(io.Reader) (T, error)) (T, error) {
	f, err := os.Open(path)
	if err != nil {
		var none T
		return none, err
	}
	defer f.Close()
	v, err := parse(f)
	if err != nil {
		return v, fmt.Errorf("parse %q: %w", path, err)
	}
	return v, nil
}

// parseModulesDep reads the list that depmod makes; modules.dep(5).
func parseModulesDep(r io.Reader) (map[string]module, error) {
	modules := map[string]module{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for line := 1; s.Scan(); line++ {
		if strings.TrimSpace(s.Text()) == "" {
			continue
		}
		file, rest, ok := strings.Cut(s.Text(), ":")
		if !ok || !filepath.IsLocal(file) {
			return nil, fmt.Errorf("line %d: not of the form FILE: FILE…", line)
		}
		m := module{path: file}
		for dep := range strings.FieldsSeq(rest) {
			m.depends = append(m.depends, moduleName(dep))
		}
		modules[moduleName(file)] = m
	}
	return modules, s.Err()
}

// parseBuiltin reads the list of modules that are part of the kernel.
func parseBuiltin(r io.Reader) (map[string]bool, error) {
	names := map[string]bool{}
	s := bufio.NewScanner(r)
	for s.Scan() {
		names[moduleName(s.Text())] = true
	}
	return names, s.Err()
}

// walkModules finds the module files of a folder.
func walkModules(dir string) (map[string]module, error) {
	modules := map[string]module{}
	err := filepath.WalkDir(dir, func(file string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !isModule(e.Name()) {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		modules[moduleName(rel)] = module{path: rel}
		return err
	})
	return modules, err
}

// isModule reports whether a file's name is that of a module, packed or not.
func isModule(name string) bool {
	_, suffix, ok := strings.Cut(name, ".ko")
	return ok && (suffix == "" || unpackers[suffix] != nil)
}

// resolve orders the modules of the given names so that each comes after all
// that it depends on. Names that the tree lacks are returned as missing; those
// that are built into the kernel are neither.
func (t *moduleTree) resolve(names []string) (ordered []module, missing []string, err error) {
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		m, ok := t.modules[name]
		// A circle can't be loaded in any order; that is for the kernel to say.
		if !ok || seen[name] {
			return nil
		}
		seen[name] = true
		if t.depends != nil {
			if m.depends, err = t.depends(m); err != nil {
				return err
			}
		}
		for _, dep := range m.depends {
			if _, ok := t.modules[dep]; !ok && !t.builtin[dep] {
				return fmt.Errorf("module %s needs %s, which is not in %q", name, dep, t.dir)
			}
			if err := visit(dep); err != nil {
				return err
			}
		}
		ordered = append(ordered, m)
		return nil
	}
	for _, name := range names {
		if _, ok := t.modules[name]; !ok && !t.builtin[name] {
			missing = append(missing, name)
		}
		if err := visit(name); err != nil {
			return nil, nil, err
		}
	}
	return ordered, missing, nil
}
