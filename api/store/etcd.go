package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nextstack/nextstack/api/problem"
)

const (
	etcdPage    = 500 // entries per request of a list, so that no answer is huge
	etcdRelists = 5   // how often a list starts again because its revision was compacted while it read
	etcdRewatch = 50 * time.Millisecond
	etcdWaitMax = 5 * time.Second
)

type etcd struct {
	client *clientv3.Client
	done   context.Context // ends with Close
	close  context.CancelFunc
	page   int64
}

// NewEtcd returns the store that c leads to. The caller closes c, after the store.
func NewEtcd(c *clientv3.Client) KV {
	done, cancel := context.WithCancel(c.Ctx())
	return &etcd{client: c, done: done, close: cancel, page: etcdPage}
}

// Get implements KV.
func (e *etcd) Get(ctx context.Context, key string) (Entry, error) {
	if err := checkKey(key); err != nil {
		return Entry{}, err
	}
	if err := e.readable(ctx); err != nil {
		return Entry{}, err
	}
	resp, err := e.client.Get(ctx, key)
	if err != nil {
		return Entry{}, readProblem(ctx, err)
	}
	if len(resp.Kvs) == 0 {
		return Entry{}, notFound(key)
	}
	return entryOf(resp.Kvs[0]), nil
}

// List implements KV.
func (e *etcd) List(ctx context.Context, prefix string) ([]Entry, int64, error) {
	if err := e.readable(ctx); err != nil {
		return nil, 0, err
	}
	var err error
	for range etcdRelists {
		var entries []Entry
		var revision int64
		entries, revision, err = e.list(ctx, prefix)
		if err == nil {
			return entries, revision, nil
		}
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return nil, 0, readProblem(ctx, err)
		}
	}
	return nil, 0, problem.Wrap(err, problem.Unavailable, "the store is compacted faster than it can be listed")
}

// list reads page after page at the revision of the first.
func (e *etcd) list(ctx context.Context, prefix string) (entries []Entry, revision int64, err error) {
	next, end := rangeOf(prefix)
	for {
		resp, err := e.client.Get(ctx, next, clientv3.WithRange(end), clientv3.WithLimit(e.page), clientv3.WithRev(revision))
		if err != nil {
			return nil, 0, err
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			entries = append(entries, entryOf(kv))
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return entries, revision, nil
		}
		next = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// rangeOf returns the range of the keys that begin with prefix, as etcd wants it.
func rangeOf(prefix string) (from, end string) {
	if prefix == "" {
		return "\x00", "\x00"
	}
	return prefix, clientv3.GetPrefixRangeEnd(prefix)
}

func (e *etcd) readable(ctx context.Context) error {
	if err := readEnded(ctx); err != nil {
		return err
	}
	if e.done.Err() != nil {
		return storeClosed()
	}
	return nil
}

// Commit implements KV.
func (e *etcd) Commit(ctx context.Context, tx Tx) (int64, error) {
	writes, err := tx.writes()
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, unknownOutcome(err)
	}
	if e.done.Err() != nil {
		return 0, storeClosed()
	}
	ops := make([]clientv3.Op, 0, len(writes))
	for _, w := range writes {
		if w.delete {
			ops = append(ops, clientv3.OpDelete(w.key))
		} else {
			ops = append(ops, clientv3.OpPut(w.key, string(w.value)))
		}
	}
	// What the conditions are about is read in the same transaction if they do not hold: a read afterwards could find
	// that they do by now, and could not tell which was in the way.
	conditions := make([]clientv3.Cmp, 0, len(tx.Conditions))
	reads := make([]clientv3.Op, 0, len(tx.Conditions))
	for _, c := range tx.Conditions {
		compare, read := conditionOps(c)
		conditions, reads = append(conditions, compare), append(reads, read)
	}
	resp, err := e.client.Txn(ctx).If(conditions...).Then(ops...).Else(reads...).Commit()
	if err != nil {
		return 0, commitProblem(err)
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil
	}
	for i, c := range tx.Conditions {
		var revision int64
		if i < len(resp.Responses) {
			if found := resp.Responses[i].GetResponseRange().GetKvs(); len(found) > 0 {
				revision = found[0].ModRevision
			}
		}
		if !c.holds(revision) {
			return 0, &Conflict{Condition: c}
		}
	}
	return 0, problem.New(problem.Internal, "etcd refused a transaction whose conditions hold")
}

// conditionOps returns how etcd checks c, and how it reads what c is about.
func conditionOps(c Condition) (clientv3.Cmp, clientv3.Op) {
	if c.Prefix {
		from, end := rangeOf(c.Key)
		return clientv3.Compare(clientv3.CreateRevision(from).WithRange(end), "=", 0),
			clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	}
	read := clientv3.OpGet(c.Key, clientv3.WithKeysOnly())
	if c.Revision == 0 {
		return clientv3.Compare(clientv3.CreateRevision(c.Key), "=", 0), read
	}
	return clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Revision), read
}

// Watch implements KV.
func (e *etcd) Watch(ctx context.Context, prefix string, since int64) <-chan Change {
	out := make(chan Change)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(e.done, cancel)
	go func() {
		defer close(out)
		defer cancel()
		defer stop()
		since, wait := max(since, 0), etcdRewatch
		for {
			seen, again := follow(ctx, e.client, prefix, since, out)
			if !again {
				return
			}
			if wait = min(2*wait, etcdWaitMax); seen > since {
				since, wait = seen, etcdRewatch
			}
			if !sleep(ctx, wait) {
				return
			}
		}
	}()
	return out
}

// follow sends the changes below prefix after revision since to out until it cannot go on. It returns the revision up to
// which all was sent, and whether going on from there can work.
func follow(ctx context.Context, c *clientv3.Client, prefix string, since int64, out chan<- Change) (seen int64, again bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx = aloneOnStream(ctx)
	// A member that has lost its leader says so instead of staying silent, and progress notices let a watch of a quiet
	// prefix go on after a broken connection although its last change has long been compacted. Fragments are not asked
	// for: every answer holds whole commits.
	responses := c.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(since+1), clientv3.WithProgressNotify())
	seen = since
	for {
		var resp clientv3.WatchResponse
		var open bool
		select {
		case resp, open = <-responses:
		case <-ctx.Done(): // the client may be stuck, and not close the channel
			return seen, false
		}
		if !open {
			return seen, ctx.Err() == nil
		}
		if resp.CompactRevision != 0 || errors.Is(resp.Err(), rpctypes.ErrCompacted) {
			return seen, false
		}
		if resp.Err() != nil {
			return seen, ctx.Err() == nil
		}
		changes := make([]Change, 0, len(resp.Events))
		for _, ev := range resp.Events {
			changes = append(changes, Change{Entry: entryOf(ev.Kv), Deleted: ev.Type == clientv3.EventTypeDelete})
		}
		markCommits(changes)
		for _, change := range changes {
			select {
			case out <- change:
			case <-ctx.Done():
				return seen, false
			}
			seen = max(seen, change.Revision)
		}
		if resp.IsProgressNotify() {
			seen = max(seen, resp.Header.GetRevision())
		}
	}
}

var streams atomic.Uint64

// aloneOnStream gives a watch a stream of its own: the client puts watches with the same metadata on one. On a shared stream
// of an embedded server, which has next to no buffers, beginning and ending many watches while much changes can make client
// and server wait for each other for ever, and all watches with them.
func aloneOnStream(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "nextstack-watch", strconv.FormatUint(streams.Add(1), 10))
}

// Close implements KV.
func (e *etcd) Close() error {
	e.close()
	return nil
}

func entryOf(kv *mvccpb.KeyValue) Entry {
	return Entry{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision, Created: kv.CreateRevision}
}

// sleep waits for d; it returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// readProblem returns what an error of etcd means for a read.
func readProblem(ctx context.Context, err error) error {
	if p := refusal(err); p != nil {
		return p
	}
	switch codeOf(err) {
	case codes.Unavailable, codes.ResourceExhausted:
		return problem.Wrap(err, problem.Unavailable, "the store cannot be reached")
	case codes.DeadlineExceeded:
		return problem.Wrap(err, problem.Timeout, "the store took too long")
	case codes.Canceled:
		if ended := readEnded(ctx); ended != nil {
			return ended
		}
		return problem.Wrap(err, problem.Unavailable, "the connection to the store was closed")
	default:
		return problem.Wrap(err, problem.Internal, "the store cannot be read")
	}
}

// commitProblem returns what an error of etcd means for a transaction.
func commitProblem(err error) error {
	if p := refusal(err); p != nil {
		return p
	}
	switch codeOf(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return unknownOutcome(err)
	case codes.ResourceExhausted:
		return problem.Wrap(err, problem.Unavailable, "the store is too busy")
	default:
		return problem.Wrap(err, problem.Internal, "the store cannot be written")
	}
}

// refusal returns the problem of an error after which nothing has happened and which has a remedy, or nil.
func refusal(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return tooLarge("etcd allows fewer operations; start it with --max-txn-ops=%d", MaxOps)
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return tooLarge("%s", err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return problem.New(problem.Unavailable, "the store is full").Because("%s", strings.TrimPrefix(err.Error(), "etcdserver: ")).
			Try("compact and defragment etcd or raise its quota, then disarm its alarm")
	default:
		return nil
	}
}

func codeOf(err error) codes.Code {
	var known rpctypes.EtcdError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.As(err, &known):
		return known.Code()
	default:
		return status.Code(err)
	}
}
