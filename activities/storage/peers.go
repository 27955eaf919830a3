package storage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Peers is how nodes hand disks to one another.
type Peers interface {
	// Offer makes the disk of a volume fetchable for others, for a while. Open opens it whenever somebody comes for it. An
	// earlier offer of the same volume ends. The size of the offer is left to the caller.
	Offer(ctx context.Context, volume string, open OpenDisk) (steps.DiskOffer, error)
	// Fetch opens the stream of a disk that a node offers, as SendDisk writes it. It ends when ctx does.
	Fetch(ctx context.Context, o steps.DiskOffer) (io.ReadCloser, error)
}

// OpenDisk opens a disk that was offered.
type OpenDisk func(ctx context.Context) (Disk, error)

// Limits of tickets.
const (
	ticketLife = 10 * time.Minute // the image may have to be fetched first
	maxTickets = 1000
)

// Tickets are the disks that a node offers. They live in memory: an agent that restarts forgets them, and the target asks
// anew. The zero value is ready.
type Tickets struct {
	Life time.Duration    // of a ticket that nobody uses; 0: 10 minutes
	Now  func() time.Time // nil: time.Now

	mu     sync.Mutex
	issued map[[sha256.Size]byte]*ticket // by the ticket's SHA-256: how long a look-up takes says nothing about a ticket
}

type ticket struct {
	volume string
	open   OpenDisk
	used   time.Time
	users  int
}

func (t *Tickets) now() time.Time {
	if t.Now != nil {
		return t.Now()
	}
	return time.Now()
}

// Issue makes a ticket, 256 random bits in hexadecimal digits.
func (t *Tickets) Issue(volume string, open OpenDisk) (string, error) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it never fails
	secret := hex.EncodeToString(b[:])
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	maps.DeleteFunc(t.issued, func(_ [sha256.Size]byte, k *ticket) bool { return k.volume == volume })
	if len(t.issued) >= maxTickets {
		return "", problem.New(problem.Unavailable, "this node offers %d disks already", len(t.issued))
	}
	if t.issued == nil {
		t.issued = map[[sha256.Size]byte]*ticket{}
	}
	t.issued[sha256.Sum256([]byte(secret))] = &ticket{volume: volume, open: open, used: t.now()}
	return secret, nil
}

// expire is called with the lock held.
func (t *Tickets) expire() {
	life := t.Life
	if life == 0 {
		life = ticketLife
	}
	now := t.now()
	maps.DeleteFunc(t.issued, func(_ [sha256.Size]byte, k *ticket) bool { return k.users == 0 && now.Sub(k.used) > life })
}

// Redeem opens the disk of a ticket. A ticket that is not known, or not any more, is unavailable: a new offer may be better.
func (t *Tickets) Redeem(ctx context.Context, secret string) (Disk, error) {
	t.mu.Lock()
	t.expire()
	k := t.issued[sha256.Sum256([]byte(secret))]
	if k != nil {
		k.users++
	}
	t.mu.Unlock()
	if k == nil {
		return nil, problem.New(problem.Unavailable, "the node that offered the disk does not know the ticket").
			Because("it is wrong or has expired, or the agent there has restarted").Try("try again")
	}
	leave := sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		k.users--
		k.used = t.now()
	})
	d, err := k.open(ctx)
	if err != nil {
		leave()
		return nil, err
	}
	return &redeemed{d, leave}, nil
}

// redeemed is a disk whose ticket is in use until it is closed.
type redeemed struct {
	Disk
	leave func()
}

func (r *redeemed) Close() error {
	r.leave()
	return r.Disk.Close()
}

// Exchange is Peers of the nodes of one process. Its zero value is ready.
type Exchange struct{ Tickets }

var _ Peers = (*Exchange)(nil)

// Offer implements Peers.
func (e *Exchange) Offer(_ context.Context, volume string, open OpenDisk) (steps.DiskOffer, error) {
	s, err := e.Issue(volume, open)
	return steps.DiskOffer{Address: "memory", Ticket: s}, err
}

// Fetch implements Peers.
func (e *Exchange) Fetch(ctx context.Context, o steps.DiskOffer) (io.ReadCloser, error) {
	d, err := e.Redeem(ctx, o.Ticket)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(SendDisk(ctx, w, d)) //nolint:errcheck // it never fails
		d.Close()                             //nolint:errcheck // was only read
	}()
	return r, nil
}
