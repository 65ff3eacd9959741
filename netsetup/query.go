package netsetup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// NotFoundError says that no network in use has a name.
type NotFoundError struct {
	Name  string
	Known []string // names of networks that there are, in use or not
	Was   bool     // it is one of them, and not in use
}

func (e *NotFoundError) Error() string {
	if e.Was {
		return fmt.Sprintf("network %s is not in use", e.Name)
	}
	return fmt.Sprintf("there is no network %s", e.Name)
}

// List tells which networks are in use below the runtime folder, by name. It
// goes on past those that don't answer, and returns all failures.
func List(ctx context.Context, h Host) ([]Summary, error) {
	found, err := h.networks()
	if err != nil {
		return nil, err
	}
	all := []Summary{}
	var errs []error
	for _, dir := range found {
		r, err := inspect(ctx, dir, true)
		if errors.As(err, new(*NotFoundError)) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("inspect network %s: %w", filepath.Base(dir), err))
			continue
		}
		r.Summary.Members, r.Summary.Holders = len(r.Members), len(r.Holders)
		all = append(all, r.Summary)
	}
	slices.SortFunc(all, func(a, b Summary) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return all, errors.Join(errs...)
}

// Inspect tells all about a network that is in use. It is known by its name, or
// where several have that by its ID; dir, the folder that the caller is in,
// decides between files' own networks of one name. A *NotFoundError says that
// there is none.
func Inspect(ctx context.Context, h Host, name, dir string) (Report, error) {
	folder, err := h.find(name, dir)
	if err != nil {
		return Report{}, err
	}
	r, err := inspect(ctx, folder, false)
	if err != nil && !errors.As(err, new(*NotFoundError)) {
		err = fmt.Errorf("inspect network %s: %w", name, err)
	}
	return r, err
}

// CheckDefinition is the *ConflictError with which Attach would refuse a VM that is
// to start again, as its network runs with another definition and has somebody
// else on it, so that it does so also when the VM has left. It is nil for what only
// the keeper knows, which has the last word. Nothing is changed.
func CheckDefinition(ctx context.Context, h Host, spec Spec, vm string) error {
	dir, guest := h.folder(spec)
	if guest {
		return nil // root's to read
	}
	saved, err := loadSpec(filepath.Join(dir, specName))
	if err != nil {
		return nil // it is down, or the keeper has to do
	}
	unlike := saved.Network.Spec.unlike(spec)
	if unlike == nil {
		return nil
	}
	r, err := inspect(ctx, dir, true)
	if err != nil || r.State == KeeperGone {
		return nil
	}
	others := slices.ContainsFunc(r.Members, func(m Member) bool { return m.VM != vm || m.UID != uint32(os.Geteuid()) })
	if !others && (r.State == GoingDown || len(r.Holders) == 0) {
		return nil // it goes down with the VM
	}
	return unlike
}

// networkFolders are those of all networks that ever were below a runtime folder.
func networkFolders(runtime string) ([]string, error) {
	entries, err := os.ReadDir(netsFolder(runtime))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for networks: %w", err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, filepath.Join(netsFolder(runtime), e.Name()))
	}
	return all, nil
}

// networks are the folders of all networks that ever were, below the runtime
// folder and, for an ordinary user, of those of root's that may be read.
func (h Host) networks() ([]string, error) {
	var all []string
	for _, runtime := range []string{h.Runtime, h.RootRuntime} {
		if runtime == "" {
			continue
		}
		found, err := networkFolders(runtime)
		if err != nil && (runtime == h.Runtime || !errors.Is(err, fs.ErrPermission)) {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// find is the folder of a network by its name or its ID.
func (h Host) find(name, dir string) (string, error) {
	all, err := h.networks()
	if err != nil {
		return "", err
	}
	// Root's folder can be passed but not read by others.
	for _, id := range []string{name, Spec{Name: name, Dir: dir}.folder()} {
		if path := filepath.Join(netsFolder(h.RootRuntime), id); h.RootRuntime != "" && label().MatchString(name) && exists(path) {
			all = append(all, path)
		}
	}
	var same, known []string
	for _, path := range all {
		switch id := filepath.Base(path); {
		case id == name, id == Spec{Name: name, Dir: dir}.folder():
			return path, nil
		case networkName(id) == name:
			same = append(same, path)
		default:
			known = append(known, networkName(id))
		}
	}
	switch {
	case len(same) == 1:
		return same[0], nil
	case len(same) > 1:
		return "", severalError(name, same)
	}
	return "", &NotFoundError{Name: name, Known: known}
}

// networkName is the name that an ID begins with.
func networkName(id string) string {
	name, _, _ := strings.Cut(id, ".")
	return name
}

func severalError(name string, dirs []string) error {
	var all []string
	for _, dir := range dirs {
		id := filepath.Base(dir)
		if saved, err := loadSpec(filepath.Join(dir, specName)); err == nil {
			id += " (of " + saved.Network.Dir + ")"
		}
		all = append(all, id)
	}
	return fmt.Errorf("several networks are called %s: name one of %s", name, strings.Join(all, ", "))
}

// inspect asks the keeper of the network in a folder, or reads what a dead one
// left.
func inspect(ctx context.Context, dir string, brief bool) (Report, error) {
	conn, err := dialKeeper(dir)
	switch {
	case nobodyListens(err):
		return readDead(dir)
	case errors.Is(err, fs.ErrPermission):
		return Report{}, checkSocket(filepath.Join(dir, socketName))
	case err != nil:
		return Report{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(closingTimeout))
	err = send(conn, request{Protocol: protocolVersion, Inspect: true, Brief: brief}, nil)
	r := Report{Members: []Member{}, Leases: []Lease{}}
	for {
		var answer reply
		if err == nil {
			answer, err = receiveAnswer(conn)
		}
		switch {
		case ctx.Err() != nil:
			return Report{}, context.Cause(ctx)
		case hungUp(err): // it has just ended
			return readDead(dir)
		case err != nil:
			return Report{}, err
		case answer.Refused != nil && answer.Refused.Text == notUp:
			return Report{}, notInUse(dir)
		case answer.Refused != nil:
			return Report{}, answer.Refused.err()
		case answer.Report == nil:
			return Report{}, errors.New("the keeper said nothing of it")
		}
		r.join(*answer.Report)
		if !answer.More {
			return r, nil
		}
	}
}

// receiveAnswer reads a message without files, of a keeper of this version.
func receiveAnswer(conn *net.UnixConn) (reply, error) {
	var answer reply
	files, err := receive(conn, &answer)
	err = errors.Join(err, closeAll(files))
	if err == nil && answer.Protocol != protocolVersion {
		return reply{Refused: &refusal{Text: otherVersion(answer.Protocol)}}, nil
	}
	return answer, err
}

// hungUp tells the errors of a connection whose other end has gone.
func hungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

func notInUse(dir string) error {
	return &NotFoundError{Name: networkName(filepath.Base(dir)), Was: true}
}

// readDead tells what there is of a network whose keeper is gone, without
// changing anything.
func readDead(dir string) (Report, error) {
	j, err := readJournal(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return Report{}, err
	}
	if j.done() {
		return Report{}, notInUse(dir)
	}
	id := filepath.Base(dir)
	r := Report{Summary: Summary{ID: id, Name: networkName(id)}, Holders: []Holder{}, Members: []Member{}, Leases: []Lease{}}
	if saved, err := loadSpec(filepath.Join(dir, specName)); err == nil { // else the journal has to do
		r = describeNetwork(saved.Network)
		r.Since, r.Group = saved.Since, saved.Group
	}
	r.State = KeeperGone
	for _, e := range j.ports() {
		r.Members = append(r.Members, e.Port.member())
	}
	r.sort()
	return r, nil
}

// BusyError says that VMs keep a network from going down.
type BusyError struct {
	Network string
	VMs     []string
}

func (e *BusyError) Error() string {
	are := "VMs are on it: "
	if len(e.VMs) == 1 {
		are = "a VM is on it: "
	}
	return fmt.Sprintf("take network %s down: %s%s", e.Network, are, strings.Join(e.VMs, ", "))
}

// Down ends a network's holder and waits until the network is gone. While VMs
// are on it, that is when the last of them has ended, and a *BusyError names
// them. A network that is not in use is a *NotFoundError. Name and dir are as
// for Inspect.
func Down(ctx context.Context, h Host, name, dir string) error {
	folder, err := h.find(name, dir)
	if err != nil {
		return err
	}
	for range attempts {
		again, err := down(ctx, h, folder)
		if !again {
			return err
		}
	}
	return notInUse(folder)
}

// deniedError says onlyRootTakesDown, as a keeper does that can be reached.
type deniedError struct{ cause error }

func (deniedError) Error() string   { return onlyRootTakesDown }
func (e deniedError) Unwrap() error { return e.cause }

func down(ctx context.Context, h Host, dir string) (again bool, err error) {
	name := networkName(filepath.Base(dir))
	conn, err := dialKeeper(dir)
	if nobodyListens(err) {
		return downDead(ctx, h, dir)
	}
	if errors.Is(err, fs.ErrPermission) {
		err = deniedError{err}
	}
	if err != nil {
		return false, fmt.Errorf("take network %s down: %w", name, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(closingTimeout))
	var answer reply
	if err = send(conn, request{Protocol: protocolVersion, Down: true}, nil); err == nil {
		answer, err = receiveAnswer(conn)
	}
	switch {
	case hungUp(err) && ctx.Err() == nil:
		return true, nil // it is just going, or was killed
	case err != nil:
		return false, fmt.Errorf("take network %s down: %w", name, err)
	case answer.Closing:
		return true, awaitGone(ctx, dir)
	case answer.Refused != nil:
		return false, fmt.Errorf("take network %s down: %w", name, answer.Refused.err())
	case answer.Down == nil:
		return false, fmt.Errorf("take network %s down: its keeper said nothing of it", name)
	case len(answer.Down.Members) > 0:
		return false, &BusyError{name, answer.Down.Members}
	case answer.Down.Errors != "":
		return false, fmt.Errorf("take network %s down: %s", name, answer.Down.Errors)
	}
	return false, awaitGone(ctx, dir)
}

// downDead undoes what a dead keeper left, if no VM needs it, and sees to it that
// its holder does not come back. Where there is a keeper after all, that is to
// be asked.
func downDead(ctx context.Context, h Host, dir string) (again bool, err error) {
	if err := clearElsewhere(ctx, h, dir); err != nil {
		return false, fmt.Errorf("take network %s down: %w", networkName(filepath.Base(dir)), err)
	}
	r, readErr := readDead(dir)
	if readErr != nil && !errors.As(readErr, new(*NotFoundError)) {
		return false, readErr
	}
	name := networkName(filepath.Base(dir))
	held, again, err := drainDead(ctx, dir)
	if again {
		return true, nil
	}
	if err == nil && readErr == nil {
		_, err = sweepNetwork(ctx, h, dir)
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("take network %s down: %w", name, err)
	case readErr != nil && !held:
		return false, readErr
	case !hasJournal(dir):
		return false, sweepSocket(dir)
	}
	if conn, err := dialKeeper(dir); !nobodyListens(err) { // its members have started one
		if err == nil {
			conn.Close()
		}
		return err == nil, err
	}
	return false, r.busy()
}

// busy is why a network with members can't go down.
func (r Report) busy() error {
	busy := &BusyError{Network: r.Name}
	for _, m := range r.Members {
		if !slices.Contains(busy.VMs, m.VM) {
			busy.VMs = append(busy.VMs, m.VM)
		}
	}
	return busy
}
