// Package command is gnext: the commands that people type, and what they print. It asks the server for everything and keeps
// no state but the token that a login wrote.
package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// Env is everything outside of a run of gnext.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string

	Version string
	// Agent runs the node agent until its context is done; nil in a build that has none.
	Agent func(context.Context, AgentConfig) error
	// Guard is the guardian of a node, or ends one; nil in a build that has no agent.
	Guard func(context.Context, GuardConfig) error
}

// Main runs gnext in the environment of the process and returns its exit code.
func Main(version string, agent func(context.Context, AgentConfig) error, guard func(context.Context, GuardConfig) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	return Run(ctx, Env{
		Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv,
		Version: version, Agent: agent, Guard: guard,
	})
}

// Run runs one command and returns its exit code: 0, or that of the kind of problem that it met.
func Run(ctx context.Context, env Env) int {
	a := &app{Env: env, names: map[api.Kind]map[string]string{}}
	root := a.root()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	var p *problem.Problem
	if !errors.As(err, &p) {
		// Whatever is not a problem comes from the command line's parser.
		p = problem.New(problem.Invalid, "%s", firstLine(err.Error())).Try("see `%s --help`", cmd.CommandPath())
	}
	a.printProblem(p)
	return problem.TraitsOf(p.Kind).Exit
}

// exitStatus ends the program with this code after everything that is to be said has been said.
type exitStatus int

func (s exitStatus) Error() string { return "exit status " + strconv.Itoa(int(s)) }

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}

// app is one run: the environment, the global flags and what was looked up so far.
type app struct {
	Env
	host     string
	port     uint32
	project  string
	output   string
	wait     bool
	noWait   bool
	quiet    bool
	debug    bool
	retryFor time.Duration
	key      string
	version  bool

	api   *client.Client
	names map[api.Kind]map[string]string // ID to name, of what was listed in this run

	perHost map[string]int // VMs by agent ID; nil: not counted yet
	perVol  map[string]int // snapshots by volume ID; nil: not counted yet
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "gnext",
		Short: "Gnext is both a CLI and an agent of the GNext cloud management system.",
		Long: "Gnext is both a CLI and an agent of the GNext cloud management system.\n\n" +
			"Names work wherever a UUID does. Exit codes: 0 done, 1 internal error, 2 bad request or usage, 3 login or\n" +
			"permission, 4 not found, 5 conflict, 6 quota or capacity, 7 unavailable or timeout, 8 not supported, 9 cancelled.",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkGlobals() },
	}
	a.group(root, a.agentCmd(), a.hostCmd(), a.vmCmd(), a.groupCmd(), a.imgCmd(), a.volCmd(), a.snapCmd(), a.cpCmd(), a.poolCmd(), a.vpcCmd(), a.subnetCmd(), a.portCmd(), a.sgCmd(),
		a.opCmd(), a.auditCmd(), a.projectCmd(), a.loginCmd(), a.logoutCmd(), a.eventsCmd(), a.serviceCmd(), a.versionCmd())
	help := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if a.version {
			return a.printVersion()
		}
		return help(cmd, args)
	}
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&a.host, "host", cmp.Or(a.Getenv("GNEXT_HOST"), client.DefaultHost), "set the host of the gnext service (GNEXT_HOST)")
	port := uint64(client.DefaultPort)
	if s := a.Getenv("GNEXT_PORT"); s != "" {
		var err error
		if port, err = strconv.ParseUint(s, 10, 16); err != nil {
			port = 0 // reported when it is used, if no flag overrules it
		}
	}
	f.Uint32Var(&a.port, "port", uint32(port), "set the port of the gnext service (GNEXT_PORT)")
	f.StringVar(&a.project, "project", cmp.Or(a.Getenv("GNEXT_PROJECT"), api.DefaultProject), "project to work in (GNEXT_PROJECT)")
	f.StringVarP(&a.output, "output", "o", formatTable, "output format: table, json, yaml or csv")
	f.BoolVar(&a.wait, "wait", true, "wait until an operation has ended")
	f.BoolVar(&a.noWait, "no-wait", false, "print the operation and do not wait for its end")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress on stderr")
	f.DurationVar(&a.retryFor, "retry-for", 0, "for how long to try again while the server is away, like 30s (default 10s after a lost connection, 0s if there was none)")
	f.BoolVar(&a.debug, "debug", false, "show requests on stderr (never tokens or bodies)")
	root.Flags().BoolVarP(&a.version, "version", "V", false, "show version")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var bad *pflag.InvalidValueError
		var why *problem.Problem
		if errors.As(err, &bad) && errors.As(err, &why) {
			return problem.Caused(why, problem.Invalid, "--%s: %s", bad.GetFlag().Name, why.What).Because("%s", why.Why)
		}
		return problem.New(problem.Invalid, "%s", firstLine(err.Error())).Try("see `%s --help`", cmd.CommandPath())
	})
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("project", a.completeFlag(api.KindProject)))
	return root
}

// group makes cmd a command that only holds others: alone it shows its help, and with a word it does not know it fails.
func (a *app) group(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(children...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		p := problem.New(problem.Invalid, "unknown command %q for %q", args[0], cmd.CommandPath())
		if s := nearest(cmd, args[0]); s != "" {
			return p.Try("did you mean `%s %s`?", cmd.CommandPath(), s)
		}
		return p.Try("see `%s --help`", cmd.CommandPath())
	}
	return cmd
}

// nearest returns the child of cmd that word is most likely a misspelling of, or nothing.
func nearest(cmd *cobra.Command, word string) string {
	best, name := 3, ""
	for _, c := range cmd.Commands() {
		for _, n := range append([]string{c.Name()}, c.Aliases...) {
			d := distance(strings.ToLower(word), n)
			if strings.HasPrefix(n, strings.ToLower(word)) {
				d = 1
			}
			if c.IsAvailableCommand() && d < best && d < len(n) {
				best, name = d, n
			}
		}
	}
	return name
}

// distance counts the letters to change, add or take away to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d++
			}
			diagonal = row[j+1]
			row[j+1] = min(d, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func (a *app) checkGlobals() error {
	for _, f := range formats {
		if a.output == f {
			return nil
		}
	}
	bad := a.output
	a.output = formatTable
	return problem.New(problem.Invalid, "unknown output format %q", bad).Try("use -o with one of %s", strings.Join(formats, ", "))
}

// client returns the connection to the server, with the token for it.
func (a *app) client() (*client.Client, error) {
	if a.api != nil {
		return a.api, nil
	}
	c, err := a.connect(client.Config{})
	if err != nil {
		return nil, err
	}
	token := a.Getenv("GNEXT_TOKEN")
	if token == "" {
		if token, err = a.savedToken(c.Address()); err != nil {
			return nil, err
		}
	}
	c.SetToken(token)
	a.api = c
	return c, nil
}

// connect returns a client without a token; base says what is different from other clients.
func (a *app) connect(base client.Config) (*client.Client, error) {
	base.Host, base.Port = a.host, int(a.port)
	if base.Port == 0 {
		return nil, problem.New(problem.Invalid, "GNEXT_PORT=%q is not a port", a.Getenv("GNEXT_PORT")).Try("set it to a number from 1 to 65535, or give --port")
	}
	base.UserAgent = "gnext/" + a.Version
	if a.retryFor > 0 {
		base.Patience, base.DialPatience = a.retryFor, a.retryFor
	}
	if a.debug {
		base.Trace = func(format string, args ...any) { fmt.Fprintf(a.Stderr, "debug: "+format+"\n", args...) }
	}
	return client.New(base)
}

// write returns what goes with a change that cmd asks for.
func (a *app) write(revision int64) client.Write { return client.Write{Key: a.key, IfMatch: revision} }

// writes adds the flags that every changing command has.
func (a *app) writes(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&a.key, "idempotency-key", "", "send the same key again to be sure that a change happens once (default: a new one)")
	return cmd
}

func must(err error) {
	if err != nil {
		panic(err) // a flag or command of our own table is misspelt; every run would show it
	}
}
