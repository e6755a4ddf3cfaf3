package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"unicode/utf8"
)

// A handshake is the negotiation of one connection. It reads exactly what it
// needs: no byte that a client, or somebody in between, sent ahead of
// NBD_OPT_STARTTLS survives into the encrypted session.
type handshake struct {
	srv *Server
	nc  net.Conn // a *tls.Conn after STARTTLS
	log *slog.Logger

	secure   bool // TLS is on
	noZeroes bool
	fixed    bool
	mode     replyMode
	// selected is the canonical name of the export for which
	// base:allocation was selected, if chosen.
	selected string
	chosen   bool

	out []byte // replies to one option, sent together
}

// opened is an export that the client has entered.
type opened struct {
	dev     Device
	release func()
	info    ExportInfo
	ses     session
}

// errAborted: the client ended the negotiation as it may.
var errAborted = errors.New("negotiation aborted by the client")

// run negotiates to the end. The deadline of the connection is the caller's
// business before, and the handshake's own around slow opens.
func (h *handshake) run(ctx context.Context) (*opened, error) {
	if err := h.greet(); err != nil {
		return nil, err
	}
	for {
		opt, n, err := h.readOption()
		if err != nil {
			return nil, err
		}
		exp, err := h.answer(ctx, opt, n)
		if err != nil || exp != nil {
			return exp, err
		}
	}
}

// greet exchanges the flags.
func (h *handshake) greet() error {
	b := binary.BigEndian.AppendUint64(nil, magicInit)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := h.nc.Write(b); err != nil {
		return err
	}
	var f [4]byte
	if _, err := io.ReadFull(h.nc, f[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(f[:])
	if unknown := flags &^ (clientFixedNewstyle | clientNoZeroes); unknown != 0 {
		return fmt.Errorf("unknown client flags %#x", unknown)
	}
	h.fixed = flags&clientFixedNewstyle != 0
	h.noZeroes = flags&clientNoZeroes != 0
	return nil
}

// readOption reads the head of an option; n bytes of data follow it.
func (h *handshake) readOption() (opt option, n uint32, err error) {
	var b [16]byte
	if _, err := io.ReadFull(h.nc, b[:]); err != nil {
		return 0, 0, err
	}
	if magic := binary.BigEndian.Uint64(b[:]); magic != magicOption {
		return 0, 0, fmt.Errorf("option magic %#x, want %#x", magic, magicOption)
	}
	return option(binary.BigEndian.Uint32(b[8:])), binary.BigEndian.Uint32(b[12:]), nil
}

// answer deals with one option. A non-nil opened ends the negotiation.
func (h *handshake) answer(ctx context.Context, opt option, n uint32) (*opened, error) {
	data, tooBig, err := h.readData(opt, n)
	if err != nil {
		return nil, err
	}
	h.out = h.out[:0]
	switch {
	case opt == optExportName:
		return h.exportName(ctx, data, tooBig)
	case opt == optAbort:
		h.ack(opt)
		if err := h.flush(); err != nil && !isClosed(err) {
			return nil, err
		}
		return nil, errAborted
	case !h.fixed:
		return nil, fmt.Errorf("option %d from a client without fixed newstyle", opt)
	case h.srv.closing():
		h.refuse(opt, repErrShutdown, "the server is shutting down")
	case h.srv.opt.TLSMode == TLSRequired && !h.secure && opt != optStartTLS:
		h.refuse(opt, repErrTLSRequired, "this server requires TLS")
	case tooBig:
		h.refuse(opt, repErrTooBig, fmt.Sprintf("option data of %d bytes, more than %d", n, maxOptionData))
	case opt == optStartTLS:
		return nil, h.startTLS(ctx, data)
	case opt == optInfo || opt == optGo:
		return h.infoOrGo(ctx, opt, data)
	default:
		h.simpleOption(ctx, opt, data)
	}
	return nil, h.flush()
}

// simpleOption answers the options that neither replace the connection nor
// end the negotiation.
func (h *handshake) simpleOption(ctx context.Context, opt option, data []byte) {
	switch opt {
	case optList:
		h.list(ctx, data)
	case optStructuredReply:
		switch {
		case len(data) != 0:
			h.refuse(opt, repErrInvalid, "this option takes no data")
		case h.mode == extendedReplies:
			h.refuse(opt, repErrExtHeaderRequired, "extended headers are in use already")
		case h.mode == structuredReplies:
			h.refuse(opt, repErrInvalid, "structured replies are in use already")
		default:
			h.mode = structuredReplies
			h.ack(opt)
		}
	case optExtendedHeaders:
		switch {
		case len(data) != 0:
			h.refuse(opt, repErrInvalid, "this option takes no data")
		case h.mode == extendedReplies:
			h.refuse(opt, repErrInvalid, "extended headers are in use already")
		default:
			h.mode = extendedReplies
			h.ack(opt)
		}
	case optListMetaContext, optSetMetaContext:
		h.metaContext(ctx, opt, data)
	default:
		h.refuse(opt, repErrUnsup, fmt.Sprintf("option %d is not known here", uint32(opt)))
	}
}

// readData reads an option's data, or drops what is too long to be looked at.
func (h *handshake) readData(opt option, n uint32) (data []byte, tooBig bool, err error) {
	if n <= maxOptionData {
		data = make([]byte, n)
		_, err = io.ReadFull(h.nc, data)
		return data, false, unexpected(err)
	}
	if n > maxSkip || opt == optExportName {
		return nil, true, fmt.Errorf("option %d with %d bytes of data", opt, n)
	}
	_, err = io.CopyN(io.Discard, h.nc, int64(n))
	return nil, true, unexpected(err)
}

// startTLS upgrades the connection and forgets what was negotiated before, as
// it may have been tampered with.
func (h *handshake) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) != 0:
		h.refuse(optStartTLS, repErrInvalid, "this option takes no data")
		return h.flush()
	case h.secure:
		h.refuse(optStartTLS, repErrInvalid, "TLS is on already")
		return h.flush()
	case h.srv.opt.TLSMode == TLSOff:
		h.refuse(optStartTLS, repErrPolicy, "TLS is not offered here")
		return h.flush()
	}
	h.ack(optStartTLS)
	if err := h.flush(); err != nil {
		return err
	}
	tc := tls.Server(h.nc, h.srv.opt.TLS)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	h.nc, h.secure = tc, true
	h.mode, h.selected, h.chosen = simpleReplies, "", false
	return nil
}

// open attaches the export that info describes.
func (h *handshake) open(ctx context.Context, info ExportInfo) (*opened, error) {
	dev, release, err := h.srv.opt.Exports.Open(ctx, info.Name)
	// Attaching may take long, and that is not the client's doing.
	h.srv.negotiating(h.nc)
	if err != nil {
		return nil, err
	}
	info.Size = dev.Size()
	return &opened{dev: dev, release: release, info: info, ses: h.session(info)}, nil
}

// session is what has been negotiated for an export.
func (h *handshake) session(info ExportInfo) session {
	return session{mode: h.mode, readOnly: info.ReadOnly, contexts: h.chosen && h.selected == info.Name}
}

// info describes an export; the empty name is the default export's.
func (h *handshake) info(ctx context.Context, name string) (ExportInfo, error) {
	if name == "" {
		name = h.srv.opt.DefaultExport
	}
	info, err := h.srv.opt.Exports.Info(ctx, name)
	if info.Name == "" {
		info.Name = name
	}
	return info, err
}

// ack, refuse and reply add a reply; flush sends what was added.
func (h *handshake) ack(opt option) { h.reply(opt, repAck) }

func (h *handshake) refuse(opt option, typ replyType, why string) {
	h.log.Debug("option refused", "option", uint32(opt), "reply", fmt.Sprintf("%#x", uint32(typ)), "why", why)
	h.reply(opt, typ, []byte(why[:min(len(why), maxMessage)]))
}

func (h *handshake) reply(opt option, typ replyType, data ...[]byte) {
	n := 0
	for _, d := range data {
		n += len(d)
	}
	h.out = binary.BigEndian.AppendUint64(h.out, magicReply)
	h.out = binary.BigEndian.AppendUint32(h.out, uint32(opt))
	h.out = binary.BigEndian.AppendUint32(h.out, uint32(typ))
	h.out = binary.BigEndian.AppendUint32(h.out, uint32(n))
	for _, d := range data {
		h.out = append(h.out, d...)
	}
}

func (h *handshake) flush() error {
	_, err := h.nc.Write(h.out)
	h.out = h.out[:0]
	return err
}

// badString says what is wrong with a string from a client, "" if nothing.
func badString(s []byte) string {
	switch {
	case len(s) > maxString:
		return fmt.Sprintf("string of %d bytes, more than %d", len(s), maxString)
	case strings.IndexByte(string(s), 0) >= 0:
		return "string with a NUL"
	case !utf8.Valid(s):
		return "string that is not UTF-8"
	}
	return ""
}
