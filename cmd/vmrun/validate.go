package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmrun/vmrun/profiles"
)

// validation is what validate found in one file.
type validation struct {
	File   string  `json:"file"`
	Valid  bool    `json:"valid"`
	Faults []fault `json:"faults"`
}

// fault is one thing that is wrong with a profile.
type fault struct {
	File string `json:"file"` // an extended file may be the one at fault
	Line int    `json:"line,omitempty"`
	Key  string `json:"key,omitempty"`
	Text string `json:"text"`
}

func newValidateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "validate FILE…",
		Short: "Check profiles and say all that is wrong with them",
		Args:  usageArgs(someFiles),
		RunE: func(cmd *cobra.Command, files []string) error {
			return validate(cmd.OutOrStdout(), files, asJSON)
		},
		ValidArgsFunction: completeProfiles,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func validate(w io.Writer, files []string, asJSON bool) error {
	var all []validation
	valid := true
	for _, file := range files {
		v := validateFile(file)
		all, valid = append(all, v), valid && v.Valid
	}
	if err := printValidations(w, all, asJSON); err != nil {
		return err
	}
	if !valid {
		return exitError{code: exitFailed}
	}
	return nil
}

func validateFile(file string) validation {
	v := validation{File: file, Faults: []fault{}}
	_, err := profiles.Load(file)
	var faults profiles.Faults
	switch {
	case err == nil:
		v.Valid = true
	case errors.As(err, &faults):
		for _, f := range faults {
			v.Faults = append(v.Faults, fault{f.File, f.Line, f.Key, f.Text})
		}
	default:
		v.Faults = append(v.Faults, fault{File: file, Text: err.Error()})
	}
	return v
}

func printValidations(w io.Writer, all []validation, asJSON bool) error {
	if asJSON {
		return printJSON(w, all)
	}
	var b strings.Builder
	for _, v := range all {
		if v.Valid {
			fmt.Fprintf(&b, "%s: ok\n", v.File)
		}
		for _, f := range v.Faults {
			fmt.Fprintln(&b, f)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String is the fault on one line, in the form that editors jump by.
func (f fault) String() string {
	if f.Line == 0 {
		return f.Text // has the file's name in it
	}
	return profiles.Fault{File: f.File, Line: f.Line, Key: f.Key, Text: f.Text}.Error()
}

// completeProfiles lets the shell complete the names of profiles.
func completeProfiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"toml"}, cobra.ShellCompDirectiveFilterFileExt
}
