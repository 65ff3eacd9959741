package hoststate

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// settingNames are the sysctls that a network tool might touch.
var settingNames = []string{
	"net/ipv4/ip_forward",
	"net/ipv4/conf/*/forwarding",
	"net/ipv4/conf/*/proxy_arp*",
	"net/ipv4/conf/*/rp_filter",
	"net/ipv4/conf/*/arp_*",
	"net/ipv4/conf/*/accept_*",
	"net/ipv4/conf/*/route_localnet",
	"net/ipv4/conf/*/send_redirects",
	"net/ipv6/conf/*/disable_ipv6",
	"net/ipv6/conf/*/forwarding",
	"net/ipv6/conf/*/accept_ra",
	"net/bridge/*",
}

func settings() ([]string, error) {
	var lines []string
	for _, pattern := range settingNames {
		names, err := filepath.Glob("/proc/sys/" + pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			value, err := os.ReadFile(name)
			if err != nil {
				return nil, err
			}
			lines = append(lines, strings.TrimPrefix(name, "/proc/sys/")+" = "+strings.TrimSpace(string(value)))
		}
	}
	return lines, nil
}

// filters lists the traffic filters of every link, which tc does one by one.
func filters() ([]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, link := range links {
		for _, side := range []string{"ingress", "egress"} {
			s := section{command: []string{"tc", "filter", "show", "dev", link.Name, side}, clean: handles}
			lines, err := s.read()
			if err != nil {
				return nil, err
			}
			for _, line := range lines {
				all = append(all, link.Name+" "+side+" "+line)
			}
		}
	}
	return all, nil
}

// Process is one that runs.
type Process struct {
	PID     int
	Command string // its arguments; "(name)" where it has none, or none any more
}

// Stopped tells whether a signal has stopped all of p, or p has ended.
func (p Process) Stopped() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID))
	var states []byte
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err == nil {
			states = append(states, stat[bytes.LastIndexByte(stat, ')')+2])
		}
	}
	return stopped(string(states))
}

// stopped tells the states, as in proc(5)'s stat, of threads none of which runs until a
// signal continues it, or that have ended. One that the kernel can't interrupt stops
// before it runs again, as another one has: it may wait for a child of vfork(2) that has
// stopped itself. Alone it may still be at what it was told to do.
func stopped(states string) bool {
	return strings.Trim(states, "TtDZX") == "" && (!strings.Contains(states, "D") || strings.ContainsAny(states, "Tt"))
}

// Running are the processes of the caller's process namespace, one that is just
// dying included, but for those that have ended and wait to be reaped, and the
// caller itself.
func Running() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		stat, err2 := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil || err2 != nil {
			continue // it ended meanwhile
		}
		// A first thread may be a zombie while others still close files.
		if over, err := ended(pid, 0); err != nil {
			return nil, err
		} else if over {
			continue
		}
		command := strings.TrimSpace(strings.ReplaceAll(string(args), "\x00", " "))
		if command == "" {
			_, rest, _ := strings.Cut(string(stat), " ")
			command = rest[:strings.LastIndex(rest, ")")+1]
		}
		all = append(all, Process{PID: pid, Command: command})
	}
	return all, nil
}

// Processes are the commands of Running.
func Processes() ([]string, error) {
	all, err := Running()
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, p := range all {
		lines = append(lines, p.Command)
	}
	slices.Sort(lines)
	return lines, nil
}

// runtimeFiles are what Go's runtime and its os package keep open.
var runtimeFiles = regexp.MustCompile(`^anon_inode:\[?(eventpoll|eventfd|pidfd|timerfd)\]?$|^/proc/\d+/fd$|^pidfd:`)

// openFiles are those of the caller, by what they are.
func openFiles() ([]string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	inode := regexp.MustCompile(`:\[\d+\]`)
	var lines []string
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join("/proc/self/fd", entry.Name()))
		if err != nil || runtimeFiles.MatchString(target) {
			continue
		}
		lines = append(lines, inode.ReplaceAllString(target, ":*"))
	}
	slices.Sort(lines)
	return lines, nil
}

// files are those in the folders and below. Locks and the folders that hold
// them stay for good, since a lock file that is unlinked has two owners; so do
// the last logs, for whoever looks into a failure.
func files(folders []string) ([]string, error) {
	var lines []string
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			name := filepath.Base(path)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return nil
			case err != nil:
				return err
			case entry.IsDir(), name == "lock", strings.HasSuffix(name, ".lock"), strings.Contains(name, ".log"):
				return nil
			}
			lines = append(lines, path)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return lines, nil
}
