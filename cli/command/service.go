package command

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api/problem"
)

// defaultConfig is where a node keeps the configuration of its agent.
const defaultConfig = "/etc/nextstack/agent.yml"

func (a *app) serviceCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "service", Short: "Service management"},
		a.runCmd("start", "Run the agent as its configuration file says", defaultConfig), a.stopCmd(), completionCmd())
}

func (a *app) stopCmd() *cobra.Command {
	var f runFlags
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "stop", Short: "Stop the agent that runs on this machine and wait for its end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The file tells where the agent's data is; all else in it is not for stop.
			all := a.runCmd("start", "", "").Flags()
			from := runFlags{config: f.config}
			if cmd.Flags().Changed("config") {
				if err := from.read(all); err != nil {
					return err
				}
				if v := all.Lookup("data-dir"); !cmd.Flags().Changed("data-dir") {
					f.dataDir = v.Value.String()
				}
				if v := all.Lookup("pid-file"); !cmd.Flags().Changed("pid-file") {
					f.pidFile = v.Value.String()
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			pid, err := stopPID(ctx, f.pidPath())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Stdout, "agent stopped (process %d)\n", pid)
			return writeError(err)
		},
	}
	cmd.Flags().StringVarP(&f.config, "config", "C", "", "configuration file that the agent was started with")
	cmd.Flags().StringVar(&f.dataDir, "data-dir", "/var/lib/gnext", "data directory of the agent")
	cmd.Flags().StringVar(&f.pidFile, "pid-file", "", "file that holds the process ID (default: agent.pid in the data directory)")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "for how long to wait for its end")
	return cmd
}

func noRunningAgent(file string) error {
	return problem.New(problem.NotFound, "no agent runs with %s", filepath.Clean(file)).
		Try("give the --data-dir, --pid-file or -C that it was started with")
}

func completionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "Print the completion script of a shell",
		Example:   "  source <(gnext service completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			shell := ""
			if len(args) == 1 {
				shell = args[0]
			}
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch shell {
			case "bash":
				return writeError(root.GenBashCompletionV2(out, true))
			case "zsh":
				return writeError(root.GenZshCompletion(out))
			case "fish":
				return writeError(root.GenFishCompletion(out, true))
			default:
				return problem.New(problem.Invalid, "which shell?").Try("give one of bash, zsh and fish")
			}
		},
	}
}
