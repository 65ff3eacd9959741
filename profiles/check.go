package profiles

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"unicode"
)

// CheckName tells why a name is not a DNS label (RFC 1123, section 2.1, in
// lower case). A name becomes a folder, a host name and part of file names.
func CheckName(name string) error {
	const allowed = "only lower case letters, digits and hyphens are allowed"
	switch {
	case name == "":
		return errors.New("a name can't be empty")
	case len(name) > 63:
		return fmt.Errorf("%s is too long for a name: at most 63 bytes", quote(name))
	case name[0] == '-' || name[len(name)-1] == '-':
		return fmt.Errorf("%s is not a name: no hyphen at its ends", quote(name))
	}
	for _, r := range name {
		if r >= 'A' && r <= 'Z' {
			return fmt.Errorf("%s is not a name: write it in lower case", quote(name))
		}
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("%s is not a name: it holds %q, and %s", quote(name), r, allowed)
		}
	}
	return nil
}

// checkLink tells why Linux has no interface of this name (dev_valid_name in
// net/core/dev.c; IFNAMSIZ counts the final NUL).
func checkLink(name string) error {
	switch {
	case name == "":
		return errors.New("an interface's name can't be empty")
	case len(name) > 15:
		return fmt.Errorf("%s is too long for an interface's name: at most 15 bytes", quote(name))
	case name == "." || name == "..":
		return fmt.Errorf("%s is not an interface's name", quote(name))
	}
	for _, r := range name {
		if r == '/' || r == ':' || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return fmt.Errorf("%s is not an interface's name: it holds %q", quote(name), r)
		}
	}
	return nil
}

// checkLibvirt tells why libvirt has no network of this name (libvirt forbids a
// slash; the rest is what people can read in a message).
func checkLibvirt(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s is not the name of a libvirt network: 1 to 255 bytes of printable text without a slash are allowed", quote(name))
	}
	return nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return errors.New("a path can't be empty")
	case len(path) > 4095:
		return fmt.Errorf("%s is too long for a path: at most 4095 bytes", quote(path))
	case path == "~" || strings.HasPrefix(path, "~/"):
		return fmt.Errorf("%s begins with a tilde, which only a shell replaces: write the path in full", quote(path))
	}
	return nil
}

var cpuModel = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func checkCPU(model string) error {
	if !cpuModel().MatchString(model) {
		return fmt.Errorf("%s is not a CPU model: only letters, digits, and . _ - inside are allowed", quote(model))
	}
	return nil
}

var userName = pattern(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,30}[A-Za-z0-9._$-]?$`)

func checkUser(name string) error {
	if !userName().MatchString(name) {
		return fmt.Errorf("%s is not a user's name", quote(name))
	}
	return nil
}

// checkCmdline holds to COMMAND_LINE_SIZE of x86, less what is added.
func checkCmdline(line string) error {
	if len(line) > 1900 {
		return fmt.Errorf("%s is too long for a kernel: at most 1900 bytes", quote(line))
	}
	if i := strings.IndexFunc(line, unicode.IsControl); i >= 0 {
		return fmt.Errorf("%s holds a control character", quote(line))
	}
	return nil
}

// checkTenant keeps a text for people on one line.
func checkTenant(tenant string) error {
	if tenant == "" || len(tenant) > 63 || strings.ContainsFunc(tenant, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s is not a tenant: 1 to 63 bytes of printable text are allowed", quote(tenant))
	}
	return nil
}

// parseMAC reads the address of a network card.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	switch {
	case err != nil || len(mac) != 6:
		return nil, fmt.Errorf("%s is not a MAC address: write six bytes, such as \"52:54:00:aa:bb:cc\"", quote(s))
	case mac[0]&1 != 0:
		return nil, fmt.Errorf("%s is a group address: the lowest bit of its first byte must be 0", quote(s))
	case mac.String() == "00:00:00:00:00:00":
		return nil, fmt.Errorf("%s is the address of no card", quote(s))
	}
	return mac, nil
}
