package profiles

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// resolve turns a document into the profile that it describes. The profile is
// good only if no fault was added.
func resolve(document *node, faults *Faults) *Profile {
	p := placeOf(document, faults)
	var raw rawProfile
	decodeTable(p, reflect.ValueOf(&raw).Elem())
	profile := resolveTables(p, raw)
	profile.Name = resolveName(p.at("name"), raw.Name)
	checkStart(p, profile.Machine.Type)
	checkMicro(p, profile)
	return profile
}

// resolveTables resolves all that stands in tables, which need not make up a
// machine.
func resolveTables(p place, raw rawProfile) *Profile {
	networks := resolveNetworks(p.at("networks"), raw.Networks)
	return &Profile{
		File:     p.src.path,
		Machine:  resolveMachine(p.at("machine"), raw.Machine),
		Boot:     resolveBoot(p.at("boot"), raw.Boot),
		Disks:    resolveDisks(p.at("disks"), raw.Disks),
		NICs:     resolveNICs(p, raw.NICs, networks),
		Networks: networks,
	}
}

// or is the value of a key, or where the file is silent its default.
func or[T any](value *T, initial T) T {
	if value == nil {
		return initial
	}
	return *value
}

func resolveName(p place, raw *string) string {
	if raw != nil {
		p.check(CheckName(*raw))
		return *raw
	}
	base := filepath.Base(p.src.path)
	name := strings.TrimSuffix(base, filepath.Ext(base))
	if err := CheckName(name); err != nil && !p.exists() {
		p.faultf("missing, and the file's name does not serve: %v", err)
	}
	return name
}

// checkStart finds a machine that has nothing to start from.
func checkStart(p place, machine MachineType) {
	switch {
	case p.at("boot").at("kernel").exists():
	case machine == MicroVM:
		p.at("machine").at("type").faultf("a microvm starts neither from disk nor from the network: set boot.kernel")
	case !p.at("disks").exists() && !p.at("nics").exists():
		p.faultf("nothing to boot from: set boot.kernel, or add [[disks]] or [[nics]]")
	}
}

// minMicro is what Debian's kernel needs to unpack the micro guest and to start
// it, rounded up: with less it resets, most often without a word.
const minMicro = 128 * MiB

// checkMicro finds a machine that the micro guest does not fit into.
func checkMicro(p place, profile *Profile) {
	memory := profile.Machine.Memory
	if profile.Boot.Initrd == InitrdMicro && memory >= minMemory && memory < minMicro {
		p.at("machine").at("memory").faultf("%v is too little for the micro guest, which needs %v", memory, minMicro)
	}
}

func resolveMachine(p place, raw rawMachine) Machine {
	m := Machine{
		CPUs:    or(raw.CPUs, 1),
		Memory:  or(raw.Memory, 512*MiB),
		Accel:   or(raw.Accel, AccelAuto),
		Type:    or(raw.Type, Q35),
		CPU:     or(raw.CPU, "max"),
		Display: or(raw.Display, DisplayNone),
		User:    or(raw.User, ""),
		Args:    raw.Args,
	}
	m.MaxCPUs = or(raw.MaxCPUs, m.CPUs)
	switch {
	case m.MaxCPUs < m.CPUs:
		p.at("max_cpus").faultf("%d is less than the machine's %d CPUs", m.MaxCPUs, m.CPUs)
	case m.MaxCPUs > m.CPUs && m.Type == MicroVM:
		p.at("max_cpus").faultf("a microvm keeps the CPUs that it starts with: use type q35 or pc")
	}
	if m.Memory < minMemory || m.Memory > maxMemory {
		p.at("memory").faultf("%v is out of range %v to %v", m.Memory, minMemory, maxMemory)
	}
	p.at("cpu").check(checkCPU(m.CPU))
	if m.Type == MicroVM && m.Display != DisplayNone {
		p.at("display").faultf("a microvm has no screen: use type q35 or pc, or display none")
	}
	if raw.User != nil {
		p.at("user").check(checkUser(m.User))
	}
	return m
}

const (
	minMemory = 16 * MiB
	maxMemory = 16 * TiB
)

func resolveBoot(p place, raw rawBoot) Boot {
	b := Boot{Cmdline: or(raw.Cmdline, ""), Command: raw.Command}
	b.Kernel = resolvePath(p.at("kernel"), raw.Kernel, KernelAuto)
	b.Initrd = resolvePath(p.at("initrd"), raw.Initrd, InitrdMicro)
	if !p.at("kernel").exists() {
		for _, key := range []string{"initrd", "cmdline"} {
			if at := p.at(key); at.exists() {
				at.faultf("needs boot.kernel: firmware boot does not take it")
			}
		}
	}
	if raw.Cmdline != nil {
		p.at("cmdline").check(checkCmdline(b.Cmdline))
	}
	checkCommand(p, raw)
	return b
}

func checkCommand(p place, raw rawBoot) {
	at := p.at("command")
	switch {
	case !at.exists():
	case or(raw.Initrd, "") != InitrdMicro:
		at.faultf("needs initrd = %q: no other guest knows what to do with it", InitrdMicro)
	case raw.Command != nil && (len(raw.Command) == 0 || raw.Command[0] == ""):
		at.faultf("names no program")
	}
}

// resolvePath makes a path absolute. The word stays as it is.
func resolvePath(p place, raw *string, word string) string {
	if raw == nil {
		return ""
	}
	if word != "" && *raw == word {
		return word
	}
	if !p.check(checkPath(*raw)) {
		return ""
	}
	return p.path(*raw)
}

func resolveDisks(p place, raw []rawDisk) []Disk {
	var disks []Disk
	for i, r := range raw {
		if p.item(i).isTable() {
			disks = append(disks, resolveDisk(p.item(i), r))
		}
	}
	if len(disks) == len(raw) {
		checkDisks(p, disks)
	}
	return disks
}

func resolveDisk(p place, raw rawDisk) Disk {
	d := Disk{
		Path:   resolvePath(p.at("path"), raw.Path, ""),
		Format: or(raw.Format, FormatAuto),
		Size:   or(raw.Size, 0),
		Keep:   or(raw.Keep, false),
	}
	if !p.at("path").exists() && !p.at("image").exists() {
		p.at("path").faultf("missing: name the image file")
	}
	if raw.Size != nil && (d.Size == 0 || d.Size%512 != 0) {
		p.at("size").faultf("%v is not a number of 512-byte sectors", d.Size)
	}
	unset := raw.Format != nil || !p.at("format").exists()
	if d.Keep && d.Format == FormatAuto && unset && d.Path != "" {
		d.Format = keptFormat(p, d.Path)
	}
	return d
}

// KeptFormat tells the format of a disk that the guest may write by its suffix;
// FormatAuto where that does not tell. It is never found from the content: a guest
// can write the header of another format into a raw image, and have the host
// open a file of its choice as backing file.
func KeptFormat(path string) DiskFormat {
	switch filepath.Ext(path) {
	case ".qcow2":
		return FormatQCOW2
	case ".raw", ".img":
		return FormatRaw
	}
	return FormatAuto
}

func keptFormat(p place, path string) DiskFormat {
	if format := KeptFormat(path); format != FormatAuto {
		return format
	}
	p.at("format").faultf("missing: set qcow2 or raw, since the guest of a kept disk could change what is found in %s", quote(filepath.Base(path)))
	return FormatAuto
}

// checkDisks finds images that one disk writes beneath another.
func checkDisks(p place, disks []Disk) {
	for i, d := range disks {
		first := slices.IndexFunc(disks, func(o Disk) bool { return o.Path == d.Path })
		if d.Path != "" && first < i && (d.Keep || disks[first].Keep) {
			p.item(i).at("path").faultf("disks[%d] is the same file, and a kept disk can't share its file", first)
		}
	}
}
