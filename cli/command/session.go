package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// savedLogin is what a login leaves behind for one server. A token is only ever sent to the server that gave it.
type savedLogin struct {
	User    string    `json:"user"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// loginsFile returns where logins are kept.
func (a *app) loginsFile() (string, error) {
	if dir := a.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "gnext", "logins.json"), nil
	}
	if home := a.Getenv("HOME"); home != "" {
		return filepath.Join(home, ".config", "gnext", "logins.json"), nil
	}
	return "", problem.New(problem.Invalid, "there is no place for logins").Because("neither HOME nor XDG_CONFIG_HOME is set").
		Try("set one, or use GNEXT_TOKEN")
}

func (a *app) readLogins() (map[string]savedLogin, error) {
	file, err := a.loginsFile()
	if err != nil {
		return nil, err
	}
	logins := map[string]savedLogin{}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return logins, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &logins)
	}
	if err != nil {
		return nil, problem.Caused(err, problem.Invalid, "cannot read the logins in %s", file).Try("remove the file and log in again")
	}
	return logins, nil
}

// writeLogins replaces the file as a whole, readable for its owner only.
func (a *app) writeLogins(logins map[string]savedLogin) error {
	file, err := a.loginsFile()
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(logins, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	var tmp *os.File
	if err == nil {
		tmp, err = os.CreateTemp(filepath.Dir(file), ".logins-*") // made with 0600
	}
	if err == nil {
		defer os.Remove(tmp.Name()) // gone if all goes well
		_, err = tmp.Write(append(b, '\n'))
		err = cmpErr(err, tmp.Close())
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	return problem.Wrap(err, problem.Internal, "cannot save the login in %s", file)
}

// savedToken returns the token of the last login at a server, or nothing. It does not matter that there is no place for
// logins until somebody logs in.
func (a *app) savedToken(address string) (string, error) {
	if _, err := a.loginsFile(); err != nil {
		return "", nil
	}
	logins, err := a.readLogins()
	return logins[address].Token, err
}

func (a *app) loginCmd() *cobra.Command {
	var l api.Login
	var fromStdin, printToken bool
	cmd := &cobra.Command{
		Use: "login", Short: "Get a token from the server and keep it for later commands", Args: cobra.NoArgs,
		Example: "  gnext login --user admin\n  GNEXT_TOKEN=$(gnext login --user admin --password-stdin --print-token <password-file)",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.askLogin(&l, fromStdin); err != nil {
				return err
			}
			c, err := a.connect(client.Config{})
			if err != nil {
				return err
			}
			in, err := c.Login(cmd.Context(), l)
			if err != nil {
				return err
			}
			if printToken {
				_, err := fmt.Fprintln(a.Stdout, in.Token)
				return writeError(err)
			}
			logins, err := a.readLogins()
			if err != nil {
				return err
			}
			logins[c.Address()] = savedLogin{User: l.User, Token: in.Token, Expires: in.Expires}
			if err := a.writeLogins(logins); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Stdout, "logged in at %s as %s until %s\n", c.Address(), l.User, in.Expires.UTC().Format("2006-01-02 15:04 UTC"))
			return writeError(err)
		},
	}
	cmd.Flags().StringVar(&l.User, "user", "", "user name (asked for on a terminal)")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from stdin")
	cmd.Flags().BoolVar(&printToken, "print-token", false, "print the token instead of keeping it")
	cmd.Flags().IntVar(&l.Hours, "hours", 0, "for how long the token is valid, at most 720 (default 12)")
	return cmd
}

// askLogin completes l from stdin or the terminal. A password never comes from the command line, which others can read.
func (a *app) askLogin(l *api.Login, fromStdin bool) error {
	stdin, ok := a.Stdin.(*os.File)
	tty := ok && term.IsTerminal(int(stdin.Fd()))
	if l.User == "" {
		if !tty || fromStdin {
			return problem.New(problem.Invalid, "no user is named").Try("give --user NAME")
		}
		fmt.Fprint(a.Stderr, "User: ")
		line, err := bufio.NewReader(stdin).ReadString('\n')
		if err != nil {
			return problem.Wrap(err, problem.Invalid, "cannot read the user name")
		}
		l.User = strings.TrimSpace(line)
	}
	switch {
	case fromStdin:
		b, err := io.ReadAll(io.LimitReader(a.Stdin, 64<<10))
		if err != nil {
			return problem.Wrap(err, problem.Invalid, "cannot read the password")
		}
		l.Password = strings.TrimRight(string(b), "\r\n")
	case tty:
		fmt.Fprint(a.Stderr, "Password: ")
		b, err := term.ReadPassword(int(stdin.Fd()))
		fmt.Fprintln(a.Stderr)
		if err != nil {
			return problem.Wrap(err, problem.Invalid, "cannot read the password")
		}
		l.Password = string(b)
	default:
		return problem.New(problem.Invalid, "there is no terminal to ask for the password on").Try("give --password-stdin and the password on stdin")
	}
	if l.Password == "" {
		return problem.New(problem.Invalid, "the password is empty").Try("give the password of user %s", l.User)
	}
	return nil
}

func (a *app) logoutCmd() *cobra.Command {
	return &cobra.Command{
		Use: "logout", Short: "Make the token worthless and forget it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			// A token that the server does not know (any more) is as good as revoked.
			if err := c.Logout(cmd.Context()); err != nil && !problem.Is(err, problem.Unauthenticated) {
				return err
			}
			if a.Getenv("GNEXT_TOKEN") == "" {
				logins, err := a.readLogins()
				if err != nil {
					return err
				}
				delete(logins, c.Address())
				if err := a.writeLogins(logins); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(a.Stdout, "logged out at %s\n", c.Address())
			return writeError(err)
		},
	}
}

var projects = &noun[*api.Project]{
	columns: []column[*api.Project]{
		nameCol[*api.Project](),
		col("VMS", func(p *api.Project) cell { return limit(int64(p.Spec.VMs), number(p.Spec.VMs)) }),
		col("VCPUS", func(p *api.Project) cell { return limit(int64(p.Spec.VCPUs), number(p.Spec.VCPUs)) }),
		col("MEMORY", func(p *api.Project) cell { return limit(p.Spec.Memory, size(p.Spec.Memory)) }),
		col("DISK", func(p *api.Project) cell { return limit(p.Spec.Disk, size(p.Spec.Disk)) }),
		ageCol[*api.Project](), idCol[*api.Project](),
	},
}

// limit shows a part of a quota; 0 is none.
func limit(n int64, c cell) cell {
	if n == 0 {
		return cell{"no limit", "0"}
	}
	return c
}

func (a *app) projectCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "project", Short: "Project management"}, projects.listCmd(a), projects.getCmd(a))
}

func (a *app) eventsCmd() *cobra.Command {
	var since int64
	var kinds []string
	var all bool
	cmd := &cobra.Command{
		Use: "events", Short: "Show changes as they happen", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			o := client.EventOptions{Since: since, Project: a.project, Kinds: mapped(kinds, func(s string) api.Kind { return api.Kind(s) })}
			if all {
				o.Project = ""
			}
			for e, err := range c.Events(cmd.Context(), o) {
				if err != nil && cmd.Context().Err() != nil {
					return nil // that is how one stops it
				}
				if err != nil {
					return err
				}
				if err := a.printEvent(e); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().Int64Var(&since, "since", 0, "begin after this revision (default: now)")
	cmd.Flags().StringSliceVar(&kinds, "kinds", nil, "only of these kinds, like vms,operations")
	cmd.Flags().BoolVar(&all, "all-projects", false, "of all projects")
	return cmd
}

// printEvent prints one event on one line, or as a document of its own in YAML.
func (a *app) printEvent(e client.Event) error {
	verb := "put"
	if e.Deleted {
		verb = "delete"
	}
	var err error
	switch a.output {
	case formatJSON:
		enc := json.NewEncoder(a.Stdout)
		enc.SetEscapeHTML(false)
		err = enc.Encode(e)
	case formatYAML:
		if _, err = fmt.Fprintln(a.Stdout, "---"); err == nil {
			err = a.printValue(e)
		}
	case formatCSV:
		_, err = fmt.Fprintf(a.Stdout, "%d,%s,%s,%s,%s,%s\n", e.Revision, verb, e.Kind, e.Project, e.Name, e.ID)
	default:
		_, err = fmt.Fprintf(a.Stdout, "%d %s %s\n", e.Revision, verb, oneLine(describe(e)))
	}
	return writeError(err)
}

// describe says in words what an event is about, and how the resource is now.
func describe(e client.Event) string {
	s := fmt.Sprintf("%s %s", e.Kind.Singular(), e.Name)
	if e.Name == "" || e.Name == e.ID {
		s = fmt.Sprintf("%s %s", e.Kind.Singular(), e.ID)
	}
	var r struct {
		Kind   string
		State  string
		Target api.Ref
		Status struct{ Phase, Reason string }
	}
	if json.Unmarshal(e.Resource, &r) != nil {
		return s
	}
	if r.Kind != "" {
		s += " " + r.Kind + " of " + target(&api.Operation{Target: r.Target})
	}
	if now := r.State + r.Status.Phase; now != "" {
		s += ": " + now
	}
	if r.Status.Reason != "" {
		s += ", " + r.Status.Reason
	}
	return s
}

func (a *app) versionCmd() *cobra.Command {
	var server bool
	cmd := &cobra.Command{
		Use: "version", Short: "Show the version, and that of the server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !server {
				return a.printVersion()
			}
			c, err := a.connect(client.Config{})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			h, err := c.Health(ctx)
			if err != nil {
				return err
			}
			if err := a.printVersion(); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.Stdout, "server %s at %s is %s\n", h.Version, c.Address(), h.Status)
			return writeError(err)
		},
	}
	cmd.Flags().BoolVar(&server, "server", false, "also ask the server")
	return cmd
}

func (a *app) printVersion() error {
	with := "with the agent"
	if a.Agent == nil {
		with = "without the agent"
	}
	_, err := fmt.Fprintf(a.Stdout, "gnext %s %s/%s %s\n", a.Version, runtime.GOOS, runtime.GOARCH, with)
	return writeError(err)
}
