package netsetup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// protocolVersion is said in the first message of either side. Packets keep
// their boundaries (SOCK_SEQPACKET), so a message is there whole or not at all.
const protocolVersion = 1

// maxMessage bounds one message, far above what either side has to say.
const maxMessage = 64 << 10

// request is what a member, a holder or whoever asks about the network says.
type request struct {
	Protocol int            `json:"protocol"`
	Attach   *attachRequest `json:"attach,omitempty"`
	In       *place         `json:"in,omitempty"` // where who wants to attach or hold is
	Hold     *holdRequest   `json:"hold,omitempty"`
	Inspect  bool           `json:"inspect,omitempty"`
	Follow   bool           `json:"follow,omitempty"` // answered by events from now on
	Since    time.Time      `json:"since,omitzero"`   // of Follow: what the keeper remembers after it, too; zero: nothing
	Brief    bool           `json:"brief,omitempty"`  // without what it takes a process to find out
	Ping     bool           `json:"ping,omitempty"`   // answered at once, whatever else goes on, with Closing where the keeper is about to end
	Down     bool           `json:"down,omitempty"`
	Detach   bool           `json:"detach,omitempty"` // of a member or a holder
}

// attachRequest asks for a port. A member repeats it with the same ID when the
// connection ends before the whole reply is there, and when its keeper died.
type attachRequest struct {
	ID   string   `json:"id"`
	Net  Spec     `json:"net"`
	Port PortSpec `json:"port"`

	// Resume asks for a port that the member has; where it is gone, the reply
	// is Detached.
	Resume bool `json:"resume,omitempty"`
}

// holdRequest asks to keep the network up without a port. A holder repeats it
// when its keeper died.
type holdRequest struct {
	ID       string `json:"id"`
	Net      Spec   `json:"net"`
	Group    *Group `json:"group,omitempty"`
	Draining bool   `json:"draining,omitempty"` // it was told to go with the last member

	// Again says that a keeper has granted it before; where the hold was ended
	// meanwhile, the reply is Down.
	Again bool `json:"again,omitempty"`
}

// heldReply is what a holder hears first.
type heldReply struct {
	Already bool `json:"already,omitempty"` // another one holds the network in the same way
}

// downReply says what became of the network that was to go down.
type downReply struct {
	Members  []string `json:"members,omitempty"`  // VMs on it, with the last of which it goes
	Errors   string   `json:"errors,omitempty"`   // of undoing
	Replaced bool     `json:"replaced,omitempty"` // another holder keeps it up
}

// reply is what the keeper says. One of the fields is set.
type reply struct {
	Protocol int         `json:"protocol"`
	Attached *attachment `json:"attached,omitempty"`
	Held     *heldReply  `json:"held,omitempty"`
	Down     *downReply  `json:"down,omitempty"`   // also, unasked, to a holder
	Report   *Report     `json:"report,omitempty"` // or a part of it
	More     bool        `json:"more,omitempty"`   // the report goes on
	Refused  *refusal    `json:"refused,omitempty"`
	// Following says that events follow, one in each message.
	Following bool          `json:"following,omitempty"`
	Event     *Event        `json:"event,omitempty"`
	Closing   bool          `json:"closing,omitempty"` // wait for the keeper's end and start afresh
	Detached  *detachResult `json:"detached,omitempty"`
	Address   netip.Addr    `json:"address,omitzero"` // the guest has it now, from somebody else's DHCP
}

// attachment describes a port; its TAP's files come with the message, unless
// the member has them already.
type attachment struct {
	Link    string       `json:"link"`
	Bridge  string       `json:"bridge"`
	IP      netip.Addr   `json:"ip,omitzero"`
	Subnet  netip.Prefix `json:"subnet,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
	MTU     int          `json:"mtu"`
	Members int          `json:"members"` // with this one
}

// refusal carries an error to the member, with the type that its hint needs.
type refusal struct {
	Key     string `json:"key,omitempty"`     // of a ConflictError
	Feature string `json:"feature,omitempty"` // of a MissingError
	Text    string `json:"text"`

	Elsewhere *ElsewhereError `json:"elsewhere,omitempty"`
}

func newRefusal(err error) *refusal {
	r := &refusal{Text: err.Error()}
	var conflict *ConflictError
	var missing *MissingError
	errors.As(err, &r.Elsewhere)
	switch {
	case errors.As(err, &conflict):
		r.Key, r.Text = conflict.Key, conflict.Reason
	case errors.As(err, &missing):
		r.Feature, r.Text = missing.Feature, missing.Reason
	}
	return r
}

func (r *refusal) err() error {
	switch {
	case r.Elsewhere != nil:
		return r.Elsewhere
	case r.Key != "":
		return &ConflictError{Key: r.Key, Reason: r.Text}
	case r.Feature != "":
		return &MissingError{Feature: r.Feature, Reason: r.Text}
	}
	return errors.New(r.Text)
}

// detachResult is said when the port is gone; for the last member, when the
// whole network is.
type detachResult struct {
	Last   bool   `json:"last,omitempty"`
	Errors string `json:"errors,omitempty"` // of undoing; "" when all went well
}

// send writes one message with the files' descriptors. The files stay the
// caller's.
func send(conn *net.UnixConn, message any, files []*os.File) error {
	text, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(text) > maxMessage {
		return fmt.Errorf("send message: %d bytes are more than %d", len(text), maxMessage)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	return err
}

// receive reads one message and the files that came with it, close-on-exec.
// io.EOF says that the other side is gone. The files are the caller's, on
// error there are none.
func receive(conn *net.UnixConn, message any) ([]*os.File, error) {
	text := make([]byte, maxMessage)
	rights := make([]byte, unix.CmsgSpace(4*256))
	n, rn, flags, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	files, err := rightsToFiles(rights[:rn])
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.Join(io.EOF, closeAll(files))
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return nil, errors.Join(errors.New("receive message: it is too long"), closeAll(files))
	}
	if err := json.Unmarshal(text[:n], message); err != nil {
		return nil, errors.Join(fmt.Errorf("decode message: %w", err), closeAll(files))
	}
	return files, nil
}

func rightsToFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of control message
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "/dev/net/tun"))
		}
	}
	return files, nil
}

// socketName is the keeper's socket in the network's folder.
const (
	socketName    = "keeper.sock"
	newSocketName = socketName + ".new" // before it listens
)

// inFolder calls f with a short path to a name in dir: a socket's path has room
// for 107 bytes, and state folders may be deep.
func inFolder(dir, name string, f func(path string) error) error {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0) // who may pass it need not be able to read it
	if err != nil {
		return err
	}
	defer d.Close()
	return f(filepath.Join("/proc/self/fd", fmt.Sprint(d.Fd()), name))
}

// dialTimeout is how long a full backlog is waited for: a keeper accepts at
// once, so it is only ever full under a flood.
const dialTimeout = 10 * time.Second

// dialKeeper connects by a blocking socket, since the kernel lets those wait for
// room in the backlog and refuses others (unix(7)).
func dialKeeper(dir string) (conn *net.UnixConn, err error) {
	err = inFolder(dir, socketName, func(path string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		f := os.NewFile(uintptr(fd), socketName)
		defer f.Close()
		limit := unix.NsecToTimeval(dialTimeout.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := connectSocket(fd, path); err != nil {
			return &os.PathError{Op: "connect", Path: filepath.Join(dir, socketName), Err: err}
		}
		c, err := net.FileConn(f)
		if err != nil {
			return err
		}
		conn = c.(*net.UnixConn)
		return nil
	})
	return conn, err
}

func connectSocket(fd int, path string) error {
	for {
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != unix.EINTR {
			return err
		}
	}
}

// listenKeeper binds the socket anew; the caller holds the spawn lock. It gets
// its name when it listens and its mode is right, in place of a dead keeper's:
// who waits for it sees the name lead nowhere, or to a keeper.
func listenKeeper(dir string, group *Group) (f *os.File, err error) {
	if err := removeIfThere(filepath.Join(dir, newSocketName)); err != nil {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	err = inFolder(dir, newSocketName, func(path string) error {
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: path})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		// Until here the mode is the umask's; the keeper also asks who calls.
		return errors.Join(err, openSocket(path, group), l.Close())
	})
	if err == nil {
		err = os.Rename(filepath.Join(dir, newSocketName), filepath.Join(dir, socketName))
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, fmt.Errorf("listen on keeper socket: %w", err)
	}
	return f, nil
}

// openSocket lets a group connect to a socket, or nobody but its owner.
func openSocket(path string, group *Group) error {
	if group == nil {
		return os.Chmod(path, 0o600)
	}
	return errors.Join(os.Chown(path, -1, int(group.ID)), os.Chmod(path, 0o660))
}
