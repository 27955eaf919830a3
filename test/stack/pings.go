package stack

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

	"github.com/nextstack/nextstack/api"
)

// pingEvery is how often Pings asks.
const pingEvery = 20 * time.Millisecond

// Pings asks an address again and again, from a probe on the overlay, until Stop.
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

// StartPings begins to ping the address every 20 ms, with the address of a port, from the given host. That host must not be
// one that is about to lose its power. It returns when the first answer is there.
func (s *Stack) StartPings(ctx context.Context, from *Host, p *api.Port, bits int, address string) (*Pings, error) {
	probe := func(argv ...string) []string {
		return append([]string{s.script("probe.sh"), from.Name, p.ID, p.Spec.MAC, fmt.Sprintf("%s/%d", p.Spec.Address, bits)}, argv...)
	}
	if err := Poll(ctx, 200*time.Millisecond, func() error {
		_, err := command(ctx, environment(s.sandbox...), probe("ping", "-n", "-c", "1", "-W", "1", address)...)
		return err
	}); err != nil {
		return nil, err
	}
	out, err := os.CreateTemp(s.path("log"), "pings-")
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the child has its own
	argv := probe("ping", "-n", "-D", "-i", fmt.Sprint(pingEvery.Seconds()), address)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = environment(s.sandbox...), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pings := &Pings{cmd, out.Name()}
	// Only then is it ping, which tells how many it has sent when it is stopped.
	if err := Poll(ctx, pollEvery, pings.answered); err != nil {
		_, _ = pings.Stop()
		return nil, err
	}
	return pings, nil
}

// answered reports whether there was an answer.
func (p *Pings) answered() error {
	b, err := os.ReadFile(p.out)
	if err == nil && !bytes.Contains(b, []byte(" bytes from ")) {
		err = errors.New("no ping was answered")
	}
	return err
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
	return parsePings(bufio.NewScanner(f), stopped)
}

// parsePings reads what ping -D writes: "[1700000000.123456] 64 bytes from ..." for each answer, and a summary. Times are in
// seconds, by the clock of this machine.
func parsePings(lines *bufio.Scanner, stopped float64) (Pinged, error) {
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
