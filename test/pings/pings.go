// Package pings has a ping running while something happens, and says how long there was no answer.
package pings

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Every is how often Args has ping ask.
const Every = 20 * time.Millisecond

// Args is what has to be run for Start: ping, asking an address again and again.
func Args(address string) []string {
	return []string{"ping", "-n", "-D", "-i", fmt.Sprint(Every.Seconds()), address}
}

// Pings is a ping that runs.
type Pings struct {
	cmd *exec.Cmd
	out string
}

// Pinged is what came of it.
type Pinged struct {
	Sent, Answered int
	// Gap is the longest time in which there was no answer: between two of them, or from the last one until Stop.
	Gap time.Duration
}

// String says it in a few words.
func (p Pinged) String() string {
	return fmt.Sprintf("%d of %d pings answered, longest gap %s", p.Answered, p.Sent, p.Gap.Round(time.Millisecond))
}

// Start runs a command that becomes the ping of Args, and returns when the first answer is there, which is awaited until ctx is
// done. What it writes goes into a new file of a directory, which is not removed.
func Start(ctx context.Context, cmd *exec.Cmd, dir string) (*Pings, error) {
	out, err := os.CreateTemp(dir, "pings-")
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the child has its own
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Pings{cmd, out.Name()}
	// Only then is it ping, which tells how many it has sent when it is stopped.
	for poll := time.NewTicker(Every); ; {
		b, err := os.ReadFile(p.out)
		if err == nil && bytes.Contains(b, []byte(" bytes from ")) {
			poll.Stop()
			return p, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			poll.Stop()
			_, _ = p.Stop()
			return nil, errors.Join(context.Cause(ctx), err, fmt.Errorf("no ping was answered: %s", b))
		}
	}
}

// Stop ends it, and says what came of it.
func (p *Pings) Stop() (Pinged, error) {
	// Every program on the way became the next one, so this is ping itself, which then tells how many it has sent.
	stopped := float64(time.Now().UnixNano()) / float64(time.Second)
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return Pinged{}, err
	}
	timer := time.AfterFunc(5*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return Pinged{}, err
	}
	f, err := os.Open(p.out)
	if err != nil {
		return Pinged{}, err
	}
	defer f.Close() //nolint:errcheck // was only read
	return parse(bufio.NewScanner(f), stopped)
}

// parse reads what ping -D writes: "[1700000000.123456] 64 bytes from ..." for each answer, and a summary. Times are in
// seconds, by the clock of this machine.
func parse(lines *bufio.Scanner, stopped float64) (Pinged, error) {
	var out Pinged
	last := 0.0
	for lines.Scan() {
		line := lines.Text()
		if at, rest, ok := strings.Cut(strings.TrimPrefix(line, "["), "] "); ok && strings.Contains(rest, " bytes from ") {
			t, err := strconv.ParseFloat(at, 64)
			if err != nil {
				return out, fmt.Errorf("ping wrote %q: %w", line, err)
			}
			if out.Answered > 0 {
				out.Gap = max(out.Gap, time.Duration((t-last)*float64(time.Second)))
			}
			out.Answered, last = out.Answered+1, t
		} else if sent, _, ok := strings.Cut(line, " packets transmitted"); ok {
			n, err := strconv.Atoi(sent)
			if err != nil {
				return out, fmt.Errorf("ping wrote %q: %w", line, err)
			}
			out.Sent = n
		}
	}
	if out.Answered > 0 {
		out.Gap = max(out.Gap, time.Duration((stopped-last)*float64(time.Second)))
	}
	if out.Sent == 0 {
		return out, errors.Join(lines.Err(), errors.New("ping did not tell how many it has sent"))
	}
	return out, lines.Err()
}
