package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/vm"
)

// vmInfo is what ps tells of a VM.
type vmInfo struct {
	Name       string    `json:"name"`
	State      vm.Phase  `json:"state"`
	PID        int       `json:"pid"`        // QEMU's; 0: there is none
	Supervisor int       `json:"supervisor"` // process id; 0: there is none
	Accel      string    `json:"accel"`
	Started    time.Time `json:"started,omitzero"`
	Uptime     float64   `json:"uptime_s"`
	CPU        float64   `json:"cpu_percent"` // of one CPU, since QEMU began
	CPUTime    float64   `json:"cpu_s"`
	Memory     int64     `json:"memory_bytes"` // resident
	NICs       []nicInfo `json:"nics"`
	Profile    string    `json:"profile"`
	Code       *int      `json:"code,omitempty"` // of the run; nil: it has not ended
	Ended      time.Time `json:"ended,omitzero"`
	Error      string    `json:"error,omitempty"`
}

// nicInfo is a NIC of a VM.
type nicInfo struct {
	ID      string `json:"id"` // nic0: as capture and detach name it
	Network string `json:"network"`
	Mode    string `json:"mode"`
	MAC     string `json:"mac"`
	IP      string `json:"ip"`   // that the guest uses, else is to use; "": not known
	Seen    bool   `json:"seen"` // the guest was seen to use it
	Link    string `json:"link,omitempty"`
}

func newVMInfo(m vm.Machine, now time.Time) vmInfo {
	info := vmInfo{Name: m.Name, State: m.Phase, Accel: m.Accel, Started: m.Started, Profile: m.Profile, NICs: []nicInfo{}}
	for _, nic := range m.Cards() {
		n := nicInfo{ID: nic.ID, Network: nic.Network, Mode: nic.Mode, MAC: nic.MAC.String(), Seen: nic.Seen.IsValid(), Link: nic.Link}
		if a := nic.Address(); a.IsValid() {
			n.IP = a.String()
		}
		info.NICs = append(info.NICs, n)
	}
	if m.Err != nil {
		info.Error = m.Err.Error()
	}
	if m.End != nil {
		info.Code, info.Ended, info.Error = &m.End.Code, m.End.Time, m.End.Error
	}
	if !m.Alive() {
		return info
	}
	info.PID, info.Supervisor = m.QEMU, m.Supervisor
	if !m.Started.IsZero() {
		info.Uptime = now.Sub(m.Started).Seconds()
	}
	if u, err := m.Usage(); err == nil {
		info.Memory, info.CPUTime = u.Memory, u.CPU.Seconds()
		if info.Uptime > 0 {
			info.CPU = 100 * info.CPUTime / info.Uptime
		}
	}
	return info
}

// psOptions are the flags of ps.
type psOptions struct {
	all, quiet, asJSON bool
	format             string
	filters            []string
}

const psHelp = `List the VMs of this user: those that run, and those that died without a word.

States: starting; running; paused; stopping, the guest has ended or is ending;
frozen, QEMU was stopped by a signal; dead, the process that ran it was killed
and vmrun gc forgets it; ended, with -a, a VM of run --rm=false that vmrun rm
forgets. CPU is of one processor, on average since the start. MEMORY is what
QEMU has in the host's memory.

--filter takes state=…, network=…, and name=… and profile=… with * and ?. Of one
key, one has to fit; of several keys, all.

--format is a Go template for each VM, of the fields Name, State, PID,
Supervisor, Accel, Started, Uptime, CPU, CPUTime, Memory, NICs (ID, Network,
Mode, MAC, IP, Seen, Link), Profile, Code, Ended, Error; json writes a value as JSON.`

func newPSCommand() *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"ls", "list"},
		Short:   "List VMs",
		Long:    psHelp,
		Args:    usageArgs(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ps(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "also VMs that have ended and were kept")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "names alone")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	f.StringVar(&o.format, "format", "", "print a Go template for each VM")
	f.StringArrayVar(&o.filters, "filter", nil, "only VMs that fit: state=…, network=…, name=…, profile=…")
	return cmd
}

func ps(ctx context.Context, w, stderr io.Writer, o psOptions) error {
	filter, err := parseFilters(o.filters)
	if err != nil {
		return usageError{"vmrun ps", err}
	}
	format, err := o.template()
	if err != nil {
		return usageError{"vmrun ps", err}
	}
	host, err := locateHost()
	if err != nil {
		return err
	}
	found, err := vm.List(ctx, host)
	if err != nil {
		return err
	}
	now := time.Now()
	infos := []vmInfo{}
	for _, m := range found {
		if (o.all || m.Phase != vm.Ended) && filter.fits(m) {
			infos = append(infos, newVMInfo(m, now))
		}
	}
	if err := o.print(w, infos, format, now); err != nil {
		return err
	}
	if len(infos) == 0 && rootsVMsRun() {
		fmt.Fprintln(stderr, "hint: root's VMs are not shown: sudo vmrun ps")
	}
	return nil
}

// template is that of --format; nil: there is none.
func (o psOptions) template() (*template.Template, error) {
	if o.format == "" {
		return nil, nil
	}
	if o.asJSON || o.quiet {
		return nil, errors.New("want one of --format, --json and -q")
	}
	t, err := template.New("format").Option("missingkey=error").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			text, err := json.Marshal(v)
			return string(text), err
		},
		"join": strings.Join,
	}).Parse(o.format)
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	// A field that there is not is bad usage on a host without VMs too.
	err = t.Execute(io.Discard, vmInfo{NICs: []nicInfo{{}}})
	if err != nil && strings.Contains(err.Error(), "can't evaluate field") {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}

func (o psOptions) print(w io.Writer, infos []vmInfo, format *template.Template, now time.Time) error {
	switch {
	case o.asJSON:
		return printJSON(w, infos)
	case format != nil:
		for _, i := range infos {
			if err := format.Execute(w, i); err != nil {
				return err
			}
			fmt.Fprintln(w)
		}
		return nil
	case o.quiet:
		for _, i := range infos {
			if _, err := fmt.Fprintln(w, i.Name); err != nil {
				return err
			}
		}
		return nil
	}
	return printTable(w, infos, now)
}

func printTable(w io.Writer, infos []vmInfo, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tUPTIME\tCPU\tMEMORY\tADDRESSES\tNETWORKS\tPROFILE")
	for _, i := range infos {
		fmt.Fprintln(t, strings.Join(i.columns(now), "\t"))
	}
	return t.Flush()
}

// columns are a line of the table.
func (i vmInfo) columns(now time.Time) []string {
	uptime, cpu, memory := "-", "-", "-"
	if i.PID != 0 {
		uptime = shortDuration(time.Duration(i.Uptime * float64(time.Second)))
		cpu, memory = plainNumber(i.CPU)+"%", mebibytes(i.Memory)
	}
	state := string(i.State)
	if i.Code != nil {
		state = fmt.Sprintf("%s (%d) %s ago", state, *i.Code, shortDuration(now.Sub(i.Ended)))
	}
	var addresses, networks []string
	for _, nic := range i.NICs {
		if nic.IP != "" {
			addresses = append(addresses, nic.IP)
		}
		if !slices.Contains(networks, nic.Network) {
			networks = append(networks, nic.Network)
		}
	}
	dash := func(texts []string) string {
		if len(texts) == 0 {
			return "-"
		}
		return strings.Join(texts, ",")
	}
	return []string{i.Name, state, uptime, cpu, memory, dash(addresses), dash(networks), i.Profile}
}

func mebibytes(bytes int64) string { return plainNumber(float64(bytes)/(1<<20)) + " MiB" }

// shortDuration is a duration in its two largest units.
func shortDuration(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// filters are what --filter asks for: by key, of which one has to fit.
type filters map[string][]string

var filterKeys = []string{"state", "network", "name", "profile"}

func parseFilters(texts []string) (filters, error) {
	f := filters{}
	for _, text := range texts {
		key, value, ok := strings.Cut(text, "=")
		if !ok || !slices.Contains(filterKeys, key) {
			return nil, fmt.Errorf("--filter %s: want KEY=VALUE with the key %s", text, strings.Join(filterKeys, ", "))
		}
		if _, err := path.Match(value, ""); err != nil {
			return nil, fmt.Errorf("--filter %s: %w", text, err)
		}
		f[key] = append(f[key], value)
	}
	return f, nil
}

func (f filters) fits(m vm.Machine) bool {
	for key, patterns := range f {
		values := []string{m.Name}
		switch key {
		case "state":
			values = []string{string(m.Phase)}
		case "profile":
			values = []string{m.Profile, path.Base(m.Profile)}
		case "network":
			values = nil
			for _, nic := range m.Cards() {
				values = append(values, nic.Network)
			}
		}
		if !slices.ContainsFunc(patterns, func(p string) bool {
			return slices.ContainsFunc(values, func(v string) bool {
				ok, _ := path.Match(p, v) // the pattern was tried when it was parsed
				return ok
			})
		}) {
			return false
		}
	}
	return true
}
