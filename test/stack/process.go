package stack

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Process is one long-running program of a stack. Its methods are for one goroutine at a time.
type Process struct {
	name string
	log  string // file
	argv []string
	env  []string
	// program is the place in argv of the program itself, behind what puts it where it runs.
	program int
	flags   []string // see With

	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; valid once done is closed
}

// With gives the program more flags from its next start on, in place of those that it was given like this before.
func (p *Process) With(flags ...string) { p.flags = flags }

// Start starts the program. It does not wait for it to be of use: see the Await methods of Stack. A nil Process is one that
// this stack does without.
func (p *Process) Start() error {
	if p == nil {
		return nil
	}
	if p.Running() {
		return fmt.Errorf("%s runs already", p.name)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p.argv[0], slices.Concat(p.argv[1:], p.flags)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = p.env, out, out
	// A group of its own: an interrupt at the terminal is for the test, which ends its processes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		p.err = cmd.Wait()
		close(done)
	}()
	return nil
}

// Running reports whether the program was started and has not ended.
func (p *Process) Running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// PID returns the process ID of the program, 0 if it does not run.
func (p *Process) PID() int {
	if !p.Running() {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill is kill -9. It returns when the process is gone.
func (p *Process) Kill() error {
	if !p.Running() {
		return fmt.Errorf("%s is not running any more: %w", p.name, p.ended())
	}
	if err := p.cmd.Process.Kill(); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Terminate asks the program to end, and waits for nothing: see Stop.
func (p *Process) Terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// Stop asks the program to end, and insists after grace. That it had to insist is an error.
func (p *Process) Stop(grace time.Duration) error {
	if p == nil || !p.Running() {
		return nil
	}
	if err := p.Terminate(); err != nil {
		return err
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
		return nil
	case <-t.C:
		return fmt.Errorf("%s had not ended %s after SIGTERM: %w", p.name, grace, p.Kill())
	}
}

func (p *Process) ended() error {
	if p.cmd == nil {
		return fmt.Errorf("%s was never started", p.name)
	}
	if p.err == nil {
		return fmt.Errorf("%s ended by itself", p.name)
	}
	return p.err
}

// Tail returns the last lines of what the program wrote, without the requests it served and the password that it told.
func (p *Process) Tail(lines int) string {
	b, _ := os.ReadFile(p.log)
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	all = slices.DeleteFunc(all, func(l string) bool { return strings.Contains(l, " msg=request ") })
	all = all[max(0, len(all)-lines):]
	for i, l := range all {
		if strings.HasPrefix(l, passwordLine) {
			all[i] = passwordLine + "(hidden)"
		}
	}
	return strings.Join(all, "\n")
}

// command runs a program to its end and returns what it wrote to standard output; its errors hold what it wrote besides.
func command(ctx context.Context, env []string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	cmd.WaitDelay = time.Second // a daemon that it leaves behind may hold the pipes
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(errs.String()+out.String()))
	}
	return out.String(), nil
}

// environment is this process's, without proxies: the addresses of a stack are all on this machine.
func environment(extra ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasSuffix(strings.ToLower(name), "_proxy") || strings.HasPrefix(name, "NEXTSTACK_") || strings.HasPrefix(name, "GNEXT_") || strings.HasPrefix(name, "SANDBOX_") {
			continue
		}
		env = append(env, e)
	}
	return append(env, extra...)
}
