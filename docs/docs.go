// Package docs holds those pages of this folder that `vmrun help TOPIC` shows, so
// that the binary and the repository say the same.
package docs

import _ "embed"

// The pages, in Markdown.
var (
	//go:embed profile.md
	Profile string
	//go:embed networks.md
	Networks string
	//go:embed exit-codes.md
	ExitCodes string
)
