// Command nextstack is the control plane: the API, the workflows and the central steps, with etcd and Temporal embedded
// unless it is pointed at external ones.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api/problem"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: "nextstack", Short: "The control plane of a NextStack cloud",
		Version: version, SilenceErrors: true, SilenceUsage: true,
	}
	root.AddCommand(serveCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		var p *problem.Problem
		if errors.As(err, &p) {
			os.Exit(problem.TraitsOf(p.Kind).Exit)
		}
		os.Exit(2)
	}
}
