package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// status is what a check found.
type status string

const (
	statusOK      status = "ok"
	statusWarning status = "warning" // works, but not as well or not in every mode
	statusMissing status = "missing"
)

// finding is the outcome of one check.
type finding struct {
	Name   string `json:"name"`
	Status status `json:"status"`
	Found  string `json:"found"`
	Do     string `json:"do,omitempty"` // what to do about it
	Needed bool   `json:"needed"`       // without it a VM on a nat network can't run here
}

// diagnosis is what doctor reports.
type diagnosis struct {
	Ready  bool      `json:"ready"` // a micro guest on a nat network can run here
	Checks []finding `json:"checks"`
}

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host lacks",
		Long: "Say what this host has and lacks for running VMs. Nothing is changed.\n" +
			"The exit code is 0 if a VM can run on a nat network here, else 1.",
		Args: usageArgs(noArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := hostProbe()
			if err != nil {
				return err
			}
			return doctor(cmd.Context(), cmd.OutOrStdout(), p, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// doctor runs all checks and prints what they found.
func doctor(ctx context.Context, w io.Writer, p probe, asJSON bool) error {
	d := diagnose(ctx, p)
	if err := printDiagnosis(w, d, asJSON); err != nil {
		return err
	}
	if !d.Ready {
		return exitError{code: exitFailed}
	}
	return nil
}

func diagnose(ctx context.Context, p probe) diagnosis {
	d := diagnosis{Ready: true}
	for _, c := range checks {
		f := c.run(ctx, p)
		f.Name, f.Needed = c.name, c.needed
		if f.Needed && f.Status == statusMissing {
			d.Ready = false
		}
		d.Checks = append(d.Checks, f)
	}
	return d
}

func printDiagnosis(w io.Writer, d diagnosis, asJSON bool) error {
	if asJSON {
		return printJSON(w, d)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range d.Checks {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Status, f.Name, strings.ReplaceAll(f.Found, "\n", "; "))
		if f.Do != "" {
			fmt.Fprintf(t, "\t\t→ %s\n", f.Do)
		}
	}
	if d.Ready {
		fmt.Fprintf(t, "\nA VM can run on a nat network here.\n")
	} else {
		fmt.Fprintf(t, "\nNo VM can run on a nat network here: see %s.\n", strings.Join(d.lacking(), ", "))
	}
	return t.Flush()
}

func (d diagnosis) lacking() []string {
	var names []string
	for _, f := range d.Checks {
		if f.Needed && f.Status == statusMissing {
			names = append(names, f.Name)
		}
	}
	return names
}

// printJSON writes v for programs to read.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
