package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fakeMachine is what the fake QEMU has that comes and goes while it runs.
type fakeMachine struct {
	devices []string // ids of what was attached, CPUs as well
	cpus    int
	maxCPUs int
	balloon int64               // bytes that it leaves
	sets    int                 // of files
	nodes   map[string]bool     // of the block graph, and netdevs
	files   map[string]*os.File // by the name of getfd
	memory  string              // of the guest
}

// fakeArguments are those of the commands that change a machine.
type fakeArguments struct {
	ID, Driver, Drive, Netdev, FDName, URI, Path string
	Node                                         string `json:"node-name"`
	Value                                        int64
}

func newFakeMachine(args string) fakeMachine {
	m := fakeMachine{nodes: map[string]bool{}, files: map[string]*os.File{}, memory: "fake guest"}
	now, most, more := strings.Cut(strings.TrimPrefix(after(args, "-smp "), "cpus="), ",maxcpus=")
	m.cpus, _ = strconv.Atoi(now)
	if m.maxCPUs = m.cpus; more {
		m.maxCPUs, _ = strconv.Atoi(most)
	}
	m.balloon, _ = strconv.ParseInt(strings.TrimSuffix(after(args, "-m "), "M"), 10, 64)
	m.balloon <<= 20
	return m
}

// answer is what a command returns; "" is one that is none of a machine's. The
// fake errs on what is not there.
func (m *fakeMachine) answer(command string, a fakeArguments, file func() *os.File) (reply string, err error) {
	switch command {
	case "query-version":
		return `{"qemu":{"major":9,"minor":9,"micro":9}}`, nil
	case "query-hotpluggable-cpus":
		return m.slots(), nil
	case "query-cpus-fast":
		return "[" + strings.Join(slices.Repeat([]string{"{}"}, m.cpus), ",") + "]", nil
	case "query-balloon":
		return fmt.Sprintf(`{"actual":%d}`, m.balloon), nil
	case "balloon":
		m.balloon = a.Value
	case "add-fd":
		m.sets++
		return fmt.Sprintf(`{"fdset-id":%d}`, m.sets), file().Close()
	case "getfd":
		m.files[a.FDName] = file()
	case "blockdev-add":
		m.nodes[a.Node] = true
	case "netdev_add":
		m.nodes[a.ID] = true
	case "blockdev-del", "netdev_del":
		return "{}", m.removeNode(a.Node + a.ID)
	case "device_add":
		return "{}", m.plug(a)
	case "device_del":
		return "{}", m.unplug(a.ID)
	case "qom-list":
		return m.list(), nil
	case "qom-get":
		return strconv.Itoa(slices.Index(m.devices, strings.TrimPrefix(a.Path, "/machine/peripheral/")) << 3), nil
	case "migrate":
		return "{}", m.migrate(a.URI, func(f *os.File) error { _, err := f.WriteString(m.memory); return err })
	case "migrate-incoming":
		return "{}", m.migrate(a.URI, func(f *os.File) error {
			text, err := io.ReadAll(f)
			m.memory = string(text)
			return err
		})
	default:
		return "", nil
	}
	return "{}", nil
}

func (m *fakeMachine) slots() string {
	var all []string
	for n := m.maxCPUs - 1; n >= 0; n-- {
		path := ""
		if n < m.cpus {
			path = fmt.Sprintf(`,"qom-path":"/machine/unattached/%d"`, n)
		}
		all = append(all, fmt.Sprintf(`{"type":"fake-cpu","props":{"socket-id":%d}%s}`, n, path))
	}
	return "[" + strings.Join(all, ",") + "]"
}

func (m *fakeMachine) list() string {
	var all []string
	for _, id := range m.devices {
		all = append(all, fmt.Sprintf(`{"name":%q}`, id))
	}
	return "[" + strings.Join(all, ",") + "]"
}

func (m *fakeMachine) plug(a fakeArguments) error {
	if behind := a.Drive + a.Netdev; behind != "" && !m.nodes[behind] {
		return fmt.Errorf("nothing is called %s", behind)
	}
	if a.Driver == "fake-cpu" {
		m.cpus++
	}
	m.devices = append(m.devices, a.ID)
	return nil
}

func (m *fakeMachine) unplug(id string) error {
	if !slices.Contains(m.devices, id) {
		return fmt.Errorf("device %s is not there", id)
	}
	m.devices = slices.DeleteFunc(m.devices, func(d string) bool { return d == id })
	return nil
}

// removeNode closes also what a netdev was given.
func (m *fakeMachine) removeNode(name string) error {
	if !m.nodes[name] || slices.Contains(m.devices, name) {
		return fmt.Errorf("%s is not there, or in use", name)
	}
	delete(m.nodes, name)
	for file, f := range m.files {
		if strings.HasPrefix(file, name+".") {
			f.Close()
			delete(m.files, file)
		}
	}
	return nil
}

func (m *fakeMachine) migrate(uri string, move func(*os.File) error) error {
	name := strings.TrimPrefix(uri, "fd:")
	f := m.files[name]
	if f == nil {
		return fmt.Errorf("no file is called %s", name)
	}
	delete(m.files, name)
	defer f.Close()
	return move(f)
}

// fileReader reads from a socket, and keeps the files that come along.
type fileReader struct {
	conn  *net.UnixConn
	files []*os.File
}

func (r *fileReader) Read(p []byte) (int, error) {
	control := make([]byte, unix.CmsgSpace(16*4))
	n, size, _, _, err := r.conn.ReadMsgUnix(p, control)
	if n == 0 && err == nil {
		err = io.EOF
	}
	messages, _ := unix.ParseSocketControlMessage(control[:size])
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			r.files = append(r.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return n, err
}

// next is the file of the command that is being obeyed.
func (r *fileReader) next() *os.File {
	f := r.files[0]
	r.files = r.files[1:]
	return f
}

// obey answers a command that changes the machine, or asks what has come to it.
func (q *fakeQEMU) obey(command string, arguments json.RawMessage, in *fileReader) string {
	var a fakeArguments
	json.Unmarshal(arguments, &a) // what has others is not the machine's
	reply, err := q.machine.answer(command, a, in.next)
	switch {
	case err != nil:
		text, _ := json.Marshal(err.Error())
		return fmt.Sprintf(`"error":{"class":"GenericError","desc":%s}`, text)
	case reply != "":
		return `"return":` + reply
	}
	return q.answer(command)
}

// changed tells what came of a command that was obeyed.
func (q *fakeQEMU) changed(command string, arguments json.RawMessage) {
	var a fakeArguments
	json.Unmarshal(arguments, &a)
	switch command {
	case "device_del":
		q.eventWith("DEVICE_DELETED", fmt.Sprintf(`{"device":%q}`, a.ID))
	case "migrate", "migrate-incoming":
		q.eventWith("MIGRATION", `{"status":"completed"}`)
	}
}

func (q *fakeQEMU) eventWith(name, data string) {
	q.send(fmt.Sprintf(`{"event":%q,"data":%s,"timestamp":{"seconds":1,"microseconds":0}}`, name, data))
}
