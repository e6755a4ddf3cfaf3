package nbd

// Numbers of the protocol document. All integers on the wire are big-endian.

// Handshake.
//
//	S: u64 magicInit, u64 magicOption, u16 handshake flags
//	C: u32 client flags
//	C: u64 magicOption, u32 option, u32 length, data      (repeated)
//	S: u64 magicReply, u32 option, u32 reply type, u32 length, data
const (
	magicInit   uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  uint64 = 0x0003e889045565a9

	handshakeFixedNewstyle uint16 = 1 << 0
	handshakeNoZeroes      uint16 = 1 << 1

	clientFixedNewstyle uint32 = 1 << 0
	clientNoZeroes      uint32 = 1 << 1
)

// Transmission magics, of requests and replies.
const (
	magicRequest         uint32 = 0x25609513
	magicExtendedRequest uint32 = 0x21e41c71
	magicSimpleReply     uint32 = 0x67446698
	magicStructuredReply uint32 = 0x668e33ef
	magicExtendedReply   uint32 = 0x6e8a278c
)

// option is the type of an option in the handshake.
type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMetaContext option = 9
	optSetMetaContext  option = 10
	optExtendedHeaders option = 11
)

// replyType is the type of a reply to an option; errors have bit 31.
type replyType uint32

const (
	repAck         replyType = 1
	repServer      replyType = 2
	repInfo        replyType = 3
	repMetaContext replyType = 4

	repErrUnsup             replyType = 1<<31 + 1
	repErrPolicy            replyType = 1<<31 + 2
	repErrInvalid           replyType = 1<<31 + 3
	repErrPlatform          replyType = 1<<31 + 4
	repErrTLSRequired       replyType = 1<<31 + 5
	repErrUnknown           replyType = 1<<31 + 6
	repErrShutdown          replyType = 1<<31 + 7
	repErrTooBig            replyType = 1<<31 + 9
	repErrExtHeaderRequired replyType = 1<<31 + 10
)

// Information types of NBD_OPT_INFO and GO.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Transmission flags.
const (
	flagHasFlags           uint16 = 1 << 0
	flagReadOnly           uint16 = 1 << 1
	flagSendFlush          uint16 = 1 << 2
	flagSendFUA            uint16 = 1 << 3
	flagSendTrim           uint16 = 1 << 5
	flagSendWriteZeroes    uint16 = 1 << 6
	flagSendDF             uint16 = 1 << 7
	flagCanMultiConn       uint16 = 1 << 8
	flagSendCache          uint16 = 1 << 10
	flagSendFastZero       uint16 = 1 << 11
	flagBlockStatusPayload uint16 = 1 << 12
)

// Commands and their flags.
const (
	cmdRead        uint16 = 0
	cmdWrite       uint16 = 1
	cmdDisc        uint16 = 2
	cmdFlush       uint16 = 3
	cmdTrim        uint16 = 4
	cmdCache       uint16 = 5
	cmdWriteZeroes uint16 = 6
	cmdBlockStatus uint16 = 7
	cmdCount              = 8

	cmdFlagFUA        uint16 = 1 << 0
	cmdFlagNoHole     uint16 = 1 << 1
	cmdFlagDF         uint16 = 1 << 2
	cmdFlagReqOne     uint16 = 1 << 3
	cmdFlagFastZero   uint16 = 1 << 4
	cmdFlagPayloadLen uint16 = 1 << 5
)

// Reply chunks of structured and extended replies; errors have bit 15.
const (
	chunkFlagDone uint16 = 1 << 0

	chunkNone           uint16 = 0
	chunkOffsetData     uint16 = 1
	chunkBlockStatus    uint16 = 5
	chunkBlockStatusExt uint16 = 6
	chunkError          uint16 = 1<<15 + 1
)

// Status flags of base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1
)

// Sizes that this server announces and keeps to.
const (
	minBlockSize       = 1
	preferredBlockSize = 4096
	maxPayload         = 32 << 20 // bytes of one read or write

	// maxString bounds every string of the protocol.
	maxString = 4096
	// maxOptionData is what an option may carry to be looked at: the
	// longest name and thousands of queries fit.
	maxOptionData = 64 << 10
	// maxSkip is the longest refused payload or option that is read and
	// dropped to keep the stream in step; beyond it the connection closes.
	maxSkip = 64 << 20
)

// replyMode is the form of replies that was negotiated.
type replyMode uint8

const (
	simpleReplies replyMode = iota
	structuredReplies
	extendedReplies // extended requests, too
)

func (m replyMode) String() string {
	return [...]string{"simple", "structured", "extended"}[m]
}

// commandName is for people.
func commandName(cmd uint16) string {
	names := [cmdCount]string{"read", "write", "disconnect", "flush", "trim", "cache", "write zeroes", "block status"}
	if int(cmd) < len(names) {
		return names[cmd]
	}
	return "unknown"
}
