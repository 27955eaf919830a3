//go:build !unix

package command

import (
	"context"
	"io"

	"github.com/nextstack/nextstack/api/problem"
)

func lockPID(string) (io.Closer, error) {
	return nil, problem.New(problem.Unsupported, "agents do not run on this operating system").Try("run them on Linux")
}

func stopPID(_ context.Context, file string) (int, error) { return 0, noRunningAgent(file) }
