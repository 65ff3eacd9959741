package wire

// Hello begins a session, or announces that one may begin. Fields that the
// other side does not know are ignored.
type Hello struct {
	Version int `json:"version"`
	// Session is the host's choice and repeated by the guest; "": the guest's
	// agent has just started.
	Session string `json:"session,omitempty"`
	// Agent says, for people, who speaks.
	Agent string `json:"agent,omitempty"`
}

// Channels of a stream.
const (
	Stdin  = 0 // host to guest: a command's input, or files
	Stdout = 1 // guest to host: a command's output, or files
	Stderr = 2 // guest to host
	// channels is how many there are.
	channels = 3
)

// Request is what a stream is for: one of its fields is set.
type Request struct {
	Exec *Exec `json:"exec,omitempty"`
	Put  *Put  `json:"put,omitempty"`
	Get  *Get  `json:"get,omitempty"`
	// Console is the size of the terminal that shows the guest's console.
	Console *Size `json:"console,omitempty"`
}

// Exec runs a command in a session of its own.
type Exec struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"` // KEY=VALUE, besides the agent's own
	Dir  string   `json:"dir,omitempty"` // "": the agent's own
	TTY  *Size    `json:"tty,omitempty"` // a terminal for the command; its output is all on Stdout then
}

// Put takes files and folders, as package tree packs them, from Stdin.
type Put struct {
	Path string `json:"path"`
	Name string `json:"name"` // below Path, where that is a folder
}

// Get sends a file or a folder to Stdout, as package tree packs it.
type Get struct {
	Path string `json:"path"`
}

// Size is a terminal's, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Started says that a request was understood and is being worked on. Another one
// follows where more is known.
type Started struct {
	PID  int   `json:"pid,omitempty"`  // of the command
	Size int64 `json:"size,omitempty"` // as many bytes follow on Stdout, if nothing changes meanwhile
}

// Control is for a command that runs.
type Control struct {
	Signal int   `json:"signal,omitempty"` // to the command's process group
	Resize *Size `json:"resize,omitempty"` // of its terminal
}

// Result is how a request ended. An exit code of a command that could not be
// run is a shell's: 126 or 127.
type Result struct {
	Code   int    `json:"code,omitempty"`   // exit code
	Signal int    `json:"signal,omitempty"` // that ended the command; 0: none
	Error  string `json:"error,omitempty"`  // why the request failed, for people
}
