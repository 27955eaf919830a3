// Gnext is the command line of a nextstack cloud and, where it is built with cgo, the agent of its nodes.
package main

import (
	"os"
	"runtime/debug"

	"github.com/nextstack/nextstack/cli/command"
)

// version is set by the linker in releases.
var version = ""

func main() {
	os.Exit(command.Main(buildVersion(), agent, guardian))
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
