package command

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
)

// moves shows what becomes of VMs, one in each row.
var moves = []column[api.Move]{
	col("VM", func(m api.Move) cell { return cell{cmp.Or(m.VM.Name, m.VM.ID), m.VM.ID} }),
	col("PROJECT", func(m api.Move) cell { return text(m.VM.Project) }),
	col("FROM", func(m api.Move) cell { return text(m.From) }),
	col("TO", func(m api.Move) cell { return text(m.To) }),
	col("HOW", func(m api.Move) cell {
		if m.Copy {
			return text(m.Kind + " with its disks")
		}
		return text(m.Kind)
	}),
	col("STATE", func(m api.Move) cell { return text(string(m.State)) }),
	col("REASON", func(m api.Move) cell {
		if m.Error != nil {
			return text(m.Error.Error())
		}
		return text(m.Reason)
	}),
	col("OPERATION", func(m api.Move) cell { return text(m.Operation) }),
}

// rowsOf returns what a plan says of every VM in one list. Those that stay say so.
func rowsOf(p *api.MovePlan) []api.Move {
	rows := slices.Clone(p.Moves)
	for _, m := range p.Stays {
		m.State = cmp.Or(m.State, "stays")
		rows = append(rows, m)
	}
	return rows
}

// allMoved reports whether everything that was to move has moved.
func allMoved(p *api.MovePlan) bool {
	return !slices.ContainsFunc(p.Moves, func(m api.Move) bool { return m.State != api.OpSucceeded })
}

// printMoves prints what became of the VMs of a drain, a balance or a recovery.
func (a *app) printMoves(ctx context.Context, p *api.MovePlan) error {
	if a.output == formatJSON || a.output == formatYAML {
		return a.printValue(p)
	}
	if p.Proof != nil && !a.quiet {
		fmt.Fprintln(a.Stderr, proofLine(p.Proof))
	}
	rows := rowsOf(p)
	if len(rows) == 0 && a.output == formatTable {
		_, err := fmt.Fprintln(a.Stdout, "no VM has to move")
		return writeError(err)
	}
	return printList(ctx, a, moves, rows)
}

func proofLine(p *api.Proof) string {
	return fmt.Sprintf("proof that the node is off (%s, %s): %s", p.Kind, p.At.UTC().Format("2006-01-02 15:04:05 UTC"), p.Detail)
}

// printDry prints what a request would do. The reason why it would fail is returned.
func (a *app) printDry(ctx context.Context, d *api.DryRun) error {
	if err := a.writeDry(ctx, d); err != nil {
		return err
	}
	if d.Error != nil {
		return d.Error
	}
	return nil
}

func (a *app) writeDry(ctx context.Context, d *api.DryRun) error {
	if a.output == formatJSON || a.output == formatYAML {
		return a.printValue(d)
	}
	if a.output == formatCSV && d.Plan != nil {
		return printList(ctx, a, moves, rowsOf(d.Plan))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s would do (nothing has been done):\n", d.Kind)
	rows := [][]string{{"STEP", "WHERE"}}
	for _, s := range d.Steps {
		rows = append(rows, []string{s.Name, dash(s.Where)})
	}
	if err := writeTable(&b, rows); err != nil {
		return writeError(err)
	}
	if d.Volume != nil {
		b.WriteByte('\n')
		if err := writeMoving(&b, d.Volume); err != nil {
			return writeError(err)
		}
	}
	if d.Decision != nil {
		b.WriteByte('\n')
		if err := writeDecision(&b, d.Decision); err != nil {
			return writeError(err)
		}
	}
	if d.Plan != nil {
		b.WriteByte('\n')
	}
	if _, err := a.Stdout.Write(b.Bytes()); err != nil {
		return writeError(err)
	}
	if d.Plan != nil {
		return a.printMoves(ctx, d.Plan)
	}
	return nil
}

// writeDecision says where a VM goes and why, and why not elsewhere.
func writeDecision(w io.Writer, d *api.Decision) error {
	chosen := "no node can take it"
	if d.Node != "" {
		chosen = "node " + cmp.Or(d.Name, d.Node)
	}
	if d.Node != "" && d.Strategy != "" {
		chosen += " (" + d.Strategy + ")"
	}
	fmt.Fprintf(w, "chosen: %s\n", chosen)
	var rows [][]string
	for i, c := range d.Ranked {
		if i == 0 {
			rows = append(rows, []string{"  CAN TAKE IT", "SCORE", "BECAUSE OF"})
		}
		rows = append(rows, []string{"  " + cmp.Or(c.Name, c.Node), scoreOf(c), dash(terms(c.Terms))})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	rows = nil
	for i, r := range d.Refused {
		if i == 0 {
			rows = append(rows, []string{"  CANNOT", "BECAUSE"})
		}
		rows = append(rows, []string{"  " + cmp.Or(r.Name, r.Node), oneLine(r.Reason)})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	if d.More > 0 {
		fmt.Fprintf(w, "  and %d more\n", d.More)
	}
	return nil
}

// bytesTerm is how terms end that are bytes, where others are shares.
const bytesTerm = " bytes"

// scoreOf returns a score as its one term, if that is bytes.
func scoreOf(c api.Candidate) string {
	for k := range c.Terms {
		if len(c.Terms) == 1 && strings.HasSuffix(k, bytesTerm) {
			return formatSize(int64(c.Score))
		}
	}
	return score(c.Score)
}

func score(f float64) string { return strconv.FormatFloat(f, 'f', 3, 64) }

func terms(m map[string]float64) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if what, ok := strings.CutSuffix(k, bytesTerm); ok {
			out = append(out, what+" "+formatSize(int64(m[k])))
			continue
		}
		out = append(out, k+" "+score(m[k]))
	}
	return strings.Join(out, ", ")
}

// moved is what a live move was like, as its step tells it.
type moved struct {
	Total      time.Duration `json:"total"`
	Downtime   time.Duration `json:"downtime"`
	Bytes      int64         `json:"bytes"`
	Iterations int           `json:"iterations"`
	PostCopy   bool          `json:"postCopy"`
}

// writeDetail writes what a step decided or found, as far as this program knows how to read it; what it does not know, it
// shows as it is.
func writeDetail(w io.Writer, step string, raw json.RawMessage) error {
	var keys map[string]json.RawMessage
	if json.Unmarshal(raw, &keys) != nil || len(keys) == 0 {
		return nil
	}
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { _, ok := keys[n]; return ok })
	}
	fmt.Fprintf(w, "\n%s: ", step)
	var err error
	switch {
	case has("moves", "stays"):
		var p api.MovePlan
		if err = json.Unmarshal(raw, &p); err == nil {
			return writePlan(w, &p)
		}
	case has("ranked", "refused", "node"):
		var d api.Decision
		if err = json.Unmarshal(raw, &d); err == nil {
			return writeDecision(w, &d)
		}
	case has("detail") && has("kind"):
		var p api.Proof
		if err = json.Unmarshal(raw, &p); err == nil {
			_, err = fmt.Fprintln(w, proofLine(&p))
			return err
		}
	case has("live", "pause"):
		var c volumeCopied
		if err = json.Unmarshal(raw, &c); err == nil {
			_, err = fmt.Fprintln(w, c.String())
			return err
		}
	case has("fetched", "took"):
		var m diskMade
		if err = json.Unmarshal(raw, &m); err == nil {
			_, err = fmt.Fprintln(w, m.String())
			return err
		}
	case has("downtime"):
		var m moved
		if err = json.Unmarshal(raw, &m); err == nil {
			_, err = fmt.Fprintln(w, m.String())
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%s\n", raw)
	return err
}

// diskMade is what it took to make a disk, as the step tells it.
type diskMade struct {
	Fetched int64         `json:"fetched"`
	Peer    string        `json:"peer"`
	Took    time.Duration `json:"took"`
}

// String says it in words.
func (m diskMade) String() string {
	took := m.Took.Round(time.Millisecond)
	switch {
	case m.Fetched == 0:
		return fmt.Sprintf("0 bytes of the image were copied: its pool had them; %s in all", took)
	case m.Peer == "":
		return fmt.Sprintf("%s of the image came from the server; %s in all", formatSize(m.Fetched), took)
	default:
		return fmt.Sprintf("%s of the image came from the node at %s; %s in all", formatSize(m.Fetched), m.Peer, took)
	}
}

// volumeCopied is how a volume came into another pool, as the step tells it.
type volumeCopied struct {
	Live  bool          `json:"live"`
	Took  time.Duration `json:"took"`
	Pause time.Duration `json:"pause"`
}

// String says it in words.
func (c volumeCopied) String() string {
	switch {
	case c.Live && c.Pause == 0: // another step tells it
		return fmt.Sprintf("the guest went on meanwhile; %s in all", c.Took.Round(time.Millisecond))
	case c.Live:
		return fmt.Sprintf("the guest went on meanwhile, and stood still for %s; %s in all", c.Pause.Round(time.Millisecond), c.Took.Round(time.Millisecond))
	case c.Pause > 0:
		return fmt.Sprintf("the guest stood still for %s until it went on with the copy", c.Pause.Round(time.Millisecond))
	case c.Took > 0:
		return fmt.Sprintf("copied in %s; no guest ran with it", c.Took.Round(time.Millisecond))
	default:
		return "an earlier attempt had made the copy"
	}
}

// String says in words what a live move was like.
func (m moved) String() string {
	if m == (moved{}) {
		return "the guest had left before the last attempt"
	}
	s := fmt.Sprintf("the guest stood still for %s; %s were sent in %s, in %d passes", m.Downtime.Round(time.Millisecond), formatSize(m.Bytes),
		m.Total.Round(time.Millisecond), m.Iterations)
	if m.PostCopy {
		s += ", the last of them while it ran at the target"
	}
	return s
}

func writePlan(w io.Writer, p *api.MovePlan) error {
	fmt.Fprintf(w, "%d to move, %d stay\n", len(p.Moves), len(p.Stays))
	if p.Proof != nil {
		fmt.Fprintf(w, "  %s\n", proofLine(p.Proof))
	}
	var rows [][]string
	for i, m := range rowsOf(p) {
		if i == 0 {
			rows = append(rows, []string{"  VM", "FROM", "TO", "HOW", "STATE", "REASON"})
		}
		why := m.Reason
		if m.Error != nil {
			why = m.Error.Error()
		}
		rows = append(rows, []string{"  " + cmp.Or(m.VM.Name, m.VM.ID), dash(m.From), dash(m.To), dash(m.Kind), dash(string(m.State)), dash(oneLine(why))})
	}
	return writeTable(w, rows)
}
