package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vmrun/vmrun/images/guest"
)

// fakeQEMU stands in for QEMU where what counts is what vmrun makes of its
// life. It serves the inherited QMP and console sockets of its command line.
// What it does are the words after fake= in the guest's kernel command line.
type fakeQEMU struct {
	qmp     net.Conn
	console net.Conn
	acts    []string
	signal  syscall.Signal // sent to vmrun, first when the guest begins; 0: none
	begun   bool
	paused  bool
	machine fakeMachine
}

func fakeQEMUMain() {
	args := strings.Join(os.Args[1:], " ")
	if strings.Contains(args, "-version") {
		fmt.Println("QEMU emulator version 9.9.9 (fake)" + leaked())
		return
	}
	q := fakeQEMU{acts: strings.Split(after(args, "fake="), ","), machine: newFakeMachine(args)}
	if q.does("dead") {
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: -machine q35: the fake is out of order")
		unix.Exit(1)
	}
	for _, word := range q.acts {
		q.signal = max(q.signal, unix.SignalNum(word))
	}
	lockDisks(args)
	q.qmp, q.console = inherited(args, "qmp"), inherited(args, "con")
	if q.does("agent") {
		console := ""
		for _, word := range q.acts {
			if path, ok := strings.CutPrefix(word, "tty="); ok {
				console = path
			}
		}
		go guest.ServeAgentOn(inherited(args, "agent"), console)
	}
	q.serveQMP()
}

// leaked names the file of the scripts' that vmrun's children must not have.
func leaked() string {
	if file, err := os.Readlink("/proc/self/fd/9"); err == nil && strings.HasSuffix(file, "/left-open") {
		return ", with " + file
	}
	return ""
}

func (q fakeQEMU) does(word string) bool { return slices.Contains(q.acts, word) }

// after is the word that follows key in text.
func after(text, key string) string {
	_, rest, _ := strings.Cut(text, key)
	word, _, _ := strings.Cut(rest, " ")
	return word
}

// inherited opens the socket of a character device.
func inherited(args, id string) net.Conn {
	number, _, _ := strings.Cut(after(args, "socket,id="+id+",fd="), ",")
	fd, err := strconv.Atoi(number)
	if err != nil {
		panic(fmt.Sprintf("no chardev %s in %s", id, args))
	}
	f := os.NewFile(uintptr(fd), id)
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		panic(err)
	}
	return conn
}

// lockDisks has other processes see that the images are written which may be, as
// QEMU does (block/file-posix.c).
func lockDisks(args string) {
	const writes = 101 // the byte
	for _, rest := range strings.Split(args, "-add-fd fd=")[1:] {
		number, _, _ := strings.Cut(rest, ",")
		fd, err := strconv.Atoi(number)
		if err != nil {
			panic(fmt.Sprintf("no file in -add-fd fd=%s", rest))
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_ACCMODE == unix.O_RDWR {
			err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: writes, Len: 1})
		}
		if err != nil {
			panic(fmt.Sprintf("lock image %d: %v", fd, err))
		}
	}
}

func (q *fakeQEMU) serveQMP() {
	q.send(`{"QMP":{"version":{"qemu":{"major":9,"minor":9,"micro":9},"package":"fake"},"capabilities":[]}}`)
	files := &fileReader{conn: q.qmp.(*net.UnixConn)}
	in := json.NewDecoder(files)
	for {
		var cmd struct {
			Execute   string          `json:"execute"`
			Arguments json.RawMessage `json:"arguments"`
			ID        json.RawMessage `json:"id"`
		}
		if err := in.Decode(&cmd); err != nil {
			return
		}
		q.send(fmt.Sprintf(`{%s,"id":%s}`, q.obey(cmd.Execute, cmd.Arguments, files), cmd.ID))
		q.changed(cmd.Execute, cmd.Arguments)
		q.after(cmd.Execute)
	}
}

// fakeSchema is what the fake says of its protocol.
const fakeSchema = `[{"name":"stop","meta-type":"command","arg-type":"0","ret-type":"0"},
	{"name":"set-action","meta-type":"command","arg-type":"1","ret-type":"0"},
	{"name":"0","meta-type":"object","members":[]},
	{"name":"1","meta-type":"object","members":[{"name":"reboot","type":"2"}]},
	{"name":"2","meta-type":"enum","values":["reset","shutdown"]}]`

// answer is the reply to a command.
func (q *fakeQEMU) answer(command string) string {
	status := map[bool]string{false: "running", true: "paused"}[q.paused]
	switch command {
	case "query-qmp-schema":
		return `"return":` + strings.ReplaceAll(fakeSchema, "\n", "")
	case "nonsense":
		return `"error":{"class":"CommandNotFound","desc":"The command nonsense has not been found"}`
	}
	return fmt.Sprintf(`"return":{"running":%v,"status":%q}`, !q.paused, status)
}

func (q *fakeQEMU) event(name string) {
	q.send(fmt.Sprintf(`{"event":%q,"timestamp":{"seconds":1,"microseconds":0}}`, name))
}

// after is what follows a command that was answered. Whatever is asked of the
// deaf or the stubborn, they answer with the next signal to vmrun.
func (q *fakeQEMU) after(command string) {
	switch {
	case command == "cont":
		q.paused = false
		q.event("RESUME")
		if !q.begun {
			q.begun = true
			q.begin()
		}
	case command == "stop":
		q.paused = true
		q.event("STOP")
	case command == "system_reset":
		q.event("RESET")
	case command == "system_powerdown" && q.does("serve"):
		q.shutdown("guest-shutdown", true)
	case command == "system_powerdown", command == "quit" && q.does("stubborn"):
		q.signalParent()
	case command == "quit":
		q.shutdown("host-qmp-quit", false)
	}
}

// begin is what the guest does of its own accord.
func (q *fakeQEMU) begin() {
	io.WriteString(q.console, q.machine.memory+"\r\n")
	q.machine.memory = "goes on" // what a snapshot has
	go q.echo()
	switch {
	case q.does("shutdown"):
		q.shutdown("guest-shutdown", true)
	case q.does("panic"):
		q.send(`{"event":"GUEST_PANICKED","data":{"action":"pause"},"timestamp":{"seconds":1,"microseconds":0}}`)
		q.shutdown("guest-panic", true)
	case q.does("crash"):
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: the fake crashes")
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	q.signalParent()
}

// echo sends back each byte of input in angle brackets. The byte q powers off.
func (q fakeQEMU) echo() {
	in := bufio.NewReader(q.console)
	for {
		b, err := in.ReadByte()
		if err != nil {
			return
		}
		if b == 'q' {
			q.shutdown("guest-shutdown", true)
		}
		fmt.Fprintf(q.console, "<%d>", b)
	}
}

func (q fakeQEMU) signalParent() {
	if q.signal != 0 {
		syscall.Kill(os.Getppid(), q.signal)
	}
}

func (q fakeQEMU) shutdown(reason string, guest bool) {
	q.send(fmt.Sprintf(`{"event":"SHUTDOWN","data":{"guest":%v,"reason":%q},"timestamp":{"seconds":1,"microseconds":0}}`, guest, reason))
	unix.Exit(0) // without what -race does at an end, which takes a second
}

func (q fakeQEMU) send(line string) { io.WriteString(q.qmp, line+"\r\n") }
